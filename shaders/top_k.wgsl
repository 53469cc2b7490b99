// The K highest values of each row, in descending order, the lowest index first among equals: what a sampler chooses
// from.
// A workgroup takes CHUNK values of one row. If a row has several chunks, a second launch (MERGE 1) takes the highest
// of their lists.
// MERGE 0 takes logits and first penalises those of tokens seen before. Each chunk gives its list, its maximum, the
// sum of exp((value - maximum) / temperature) over all its values, and whether one of them was not finite.
// K 1 is an argmax. Otherwise the K-th highest is found by a radix search on (value, index), with bits that sort as
// the numbers do; then the values that are not below it are sorted.
// Constants: THREADS (256: the bins of a digit), K (a power of two, <= THREADS), CHUNK (<= 65536), MERGE.
@group(0) @binding(0) var<storage, read_write> values: array<u32>;   // logits [n, count], or lists [n, count / K, 2 K]
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> seen: array<u32>;     // [sequences, seen_words]: a bit a token
@group(0) @binding(3) var<storage, read_write> lists: array<u32>;    // [n, groups, 2 K]: values, then their indices
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;     // [n, groups, 4]: maximum, sum, broken, unused
struct Info { count: u32, groups: u32, row_seq_offset: u32, seen_words: u32 }
@group(0) @binding(5) var<uniform> info: Info;

var<workgroup> part: array<f32, THREADS>;
var<workgroup> at: array<u32, THREADS>;
var<workgroup> bins: array<atomic<u32>, THREADS>;
var<workgroup> keys: array<u32, K>;
var<workgroup> places: array<u32, K>;
var<workgroup> need: u32;
var<workgroup> taken: atomic<u32>;
var<workgroup> least: vec2<u32>;     // key and place of the K-th highest
var<workgroup> settled: u32;

// Maps f32 bits to a number that sorts as the value does; both zeros give the same number.
fn order(bits: u32) -> u32 {
    if (bits == 0x80000000u) { return 0x80000000u; }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn disorder(key: u32) -> u32 {
    return select(~key, key & 0x7fffffffu, (key >> 31u) == 1u);
}

// Bits and index of the i-th value of a row.
fn item(row: u32, seq: u32, i: u32) -> vec2<u32> {
    if (MERGE == 1u) {
        let start = row * info.count * 2u + i / K * (2u * K) + i % K;
        return vec2<u32>(values[start], values[start + K]);
    }
    let bits = values[row * info.count + i];
    let word = seen[seq * info.seen_words + i / 32u];
    if (((word >> (i % 32u)) & 1u) == 0u) { return vec2<u32>(bits, i); }
    let negative = (bits >> 31u) == 1u;
    let factor = bitcast<f32>(select(state[seq * SEQ + SEQ_RELIEF], state[seq * SEQ + SEQ_PENALTY], negative));
    return vec2<u32>(bitcast<u32>(bitcast<f32>(bits) * factor), i);
}

fn digit(key: u32, place: u32, turn: u32) -> u32 {
    return select(place >> (40u - 8u * turn), key >> (24u - 8u * turn), turn < 4u) & 255u;
}

// Whether a value agrees with the K-th highest in the digits found before this turn.
fn agrees(key: u32, place: u32, turn: u32) -> bool {
    if (turn == 0u) { return true; }
    if (turn < 4u) { return (key >> (32u - 8u * turn)) == (least.x >> (32u - 8u * turn)); }
    return key == least.x && (turn == 4u || (place >> 8u) == (least.y >> 8u));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.y;
    let seq = state[info.row_seq_offset + row];
    let begin = group.x * CHUNK;
    let end = min(begin + CHUNK, info.count);
    let list = (row * info.groups + group.x) * 2u * K;

    // The maximum, its index, and whether all values are finite.
    var value = LOWEST;
    var index = 0xffffffffu;
    var broken = 0u;
    for (var i = begin + thread; i < end; i += THREADS) {
        let v = bitcast<f32>(item(row, seq, i).x);
        if (not_finite(v)) { broken = 1u; }
        if (v > value) {
            value = v;
            index = i;
        }
    }
    part[thread] = value;
    at[thread] = index;
    atomicStore(&bins[thread], broken);
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            let v = part[thread + half];
            let i = at[thread + half];
            if (v > part[thread] || (v == part[thread] && i < at[thread])) {
                part[thread] = v;
                at[thread] = i;
            }
            atomicOr(&bins[thread], atomicLoad(&bins[thread + half]));
        }
    }
    workgroupBarrier();
    let highest = part[0];
    let finite = atomicLoad(&bins[0]) == 0u;
    if (K == 1u) {
        if (thread == 0u) {
            lists[list] = bitcast<u32>(highest);
            lists[list + 1u] = at[0];
            let sum = (row * info.groups + group.x) * 4u;
            sums[sum] = highest;
            sums[sum + 1u] = 1.0;
            sums[sum + 2u] = select(1.0, 0.0, finite);
            sums[sum + 3u] = 0.0;
        }
        return;
    }

    // The mass of the whole chunk. With a temperature of zero it is not used.
    workgroupBarrier();
    let temperature = bitcast<f32>(state[seq * SEQ + SEQ_TEMPERATURE]);
    let sharpness = select(1.0, 1.0 / temperature, temperature > 0.0);
    var sum = 0.0;
    for (var i = begin + thread; i < end; i += THREADS) {
        sum += exp((bitcast<f32>(item(row, seq, i).x) - highest) * sharpness);
    }
    part[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { part[thread] += part[thread + half]; }
    }
    if (thread == 0u) {
        let to = (row * info.groups + group.x) * 4u;
        sums[to] = highest;
        sums[to + 1u] = part[0];
        sums[to + 2u] = select(1.0, 0.0, finite);
        sums[to + 3u] = 0.0;
        need = min(K, end - begin);
        least = vec2<u32>(0u);
        settled = 0u;
        atomicStore(&taken, 0u);
    }

    // Digit by digit, from the highest: finds the bin of the K-th highest, and how many of that bin are needed. A
    // place is a number that sorts the lower index higher.
    for (var turn = 0u; turn < 6u; turn++) {
        let wanted = workgroupUniformLoad(&need);
        if (workgroupUniformLoad(&settled) == 1u) { break; }
        atomicStore(&bins[thread], 0u);
        workgroupBarrier();
        for (var i = begin + thread; i < end; i += THREADS) {
            let key = order(item(row, seq, i).x);
            let place = 0xffffu - (i - begin);
            if (agrees(key, place, turn)) { atomicAdd(&bins[digit(key, place, turn)], 1u); }
        }
        workgroupBarrier();
        // How many values are in this bin or a higher one.
        let here = atomicLoad(&bins[thread]);
        at[thread] = here;
        for (var far = 1u; far < THREADS; far *= 2u) {
            workgroupBarrier();
            var more = 0u;
            if (thread + far < THREADS) { more = at[thread + far]; }
            workgroupBarrier();
            at[thread] += more;
        }
        if (at[thread] >= wanted && at[thread] - here < wanted) {
            let rest = wanted - (at[thread] - here);
            need = rest;
            if (turn < 4u) { least.x |= thread << (24u - 8u * turn); } else { least.y |= thread << (40u - 8u * turn); }
            // All values of the bin are among the K, so its lower digits do not matter.
            if (rest == here) { settled = 1u; }
        }
    }
    workgroupBarrier();

    if (thread < K) {
        keys[thread] = 0u;
        places[thread] = 0u;
    }
    workgroupBarrier();
    for (var i = begin + thread; i < end; i += THREADS) {
        let key = order(item(row, seq, i).x);
        let place = 0xffffu - (i - begin);
        if (key > least.x || (key == least.x && place >= least.y)) {
            let to = atomicAdd(&taken, 1u);
            if (to < K) {
                keys[to] = key;
                places[to] = place;
            }
        }
    }
    // Bitonic sort, descending.
    for (var size = 2u; size <= K; size *= 2u) {
        for (var stride = size / 2u; stride > 0u; stride /= 2u) {
            workgroupBarrier();
            if (thread < K / 2u) {
                let a = thread / stride * (2u * stride) + thread % stride;
                let b = a + stride;
                let below = keys[a] < keys[b] || (keys[a] == keys[b] && places[a] < places[b]);
                if (below == ((a & size) == 0u)) {
                    let key = keys[a];
                    let place = places[a];
                    keys[a] = keys[b];
                    places[a] = places[b];
                    keys[b] = key;
                    places[b] = place;
                }
            }
        }
    }
    workgroupBarrier();
    if (thread < K) {
        let filled = thread < end - begin;
        let i = begin + (0xffffu - places[thread]);
        lists[list + thread] = select(bitcast<u32>(LOWEST), disorder(keys[thread]), filled);
        var id = 0xffffffffu;
        if (filled) { id = item(row, seq, i).y; }
        lists[list + K + thread] = id;
    }
}
