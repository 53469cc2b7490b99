// The end of a step: draws the next token of each row from its candidates and advances the sequence. Temperature,
// top-k, top-p and min-p are applied one after the other, as transformers does; a temperature of 0 takes the first
// candidate. The lot is Philox 4x32-10 of the sequence's seed at its step, so it does not depend on the device or the
// batch. If a logit of the row was not finite, the token is 0xffffffff. One workgroup for each sequence; the state
// lists the sequences.
// DRAFTS 0: a sequence has one row. DRAFTS 1: it has `chunk` rows, the first for its pending token and the others for
// its drafts. The next row is drawn if the token of this one is the draft that it was computed for, up to the
// sequence's limit.
// Constants: THREADS (a power of two, >= K), K (candidates of a list), DRAFTS.
@group(0) @binding(0) var<storage, read_write> lists: array<u32>;    // [n, lists, 2 K]: values, then ids; one list if K > 1
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;     // [n, groups, 4], of top_k's first launch
@group(0) @binding(2) var<storage, read_write> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> seen: array<u32>;     // [sequences, seen_words]: a bit a token
struct Info {
    lists: u32, groups: u32, layers: u32, all_seqs: u32,
    ring: u32, advance: u32, row_seq_offset: u32, seen_words: u32,
    chunk: u32, drafts_offset: u32, pad0: u32, pad1: u32,
}
@group(0) @binding(4) var<uniform> info: Info;

var<workgroup> weights: array<f32, K>;
var<workgroup> on: u32;     // 1 if another row is drawn

fn high_product(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let low = al * bl;
    let mid = ah * bl + (low >> 16u);
    let other = al * bh + (mid & 0xffffu);
    return ah * bh + (mid >> 16u) + (other >> 16u);
}

// The first word of Philox 4x32-10 (Salmon et al. 2011).
fn philox(key_low: u32, key_high: u32, counter: u32) -> u32 {
    var c = vec4<u32>(counter, 0u, 0u, 0u);
    var k = vec2<u32>(key_low, key_high);
    for (var round = 0u; round < 10u; round++) {
        c = vec4<u32>(
            high_product(0xcd9e8d57u, c.z) ^ c.y ^ k.x,
            0xcd9e8d57u * c.z,
            high_product(0xd2511f53u, c.x) ^ c.w ^ k.y,
            0xd2511f53u * c.x,
        );
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c.x;
}

// The highest of the first candidates of all lists, that of the earliest list among equals.
fn first(row: u32) -> u32 {
    let start = row * info.lists * 2u * K;
    var best = bitcast<f32>(lists[start]);
    var id = lists[start + K];
    for (var i = 1u; i < info.lists; i++) {
        let value = bitcast<f32>(lists[start + i * 2u * K]);
        if (value > best) {
            best = value;
            id = lists[start + i * 2u * K + K];
        }
    }
    return id;
}

// Draws from the candidates. Their weights are in `weights`, in descending order.
fn draw(row: u32, header: u32) -> u32 {
    let start = row * 2u * K;
    var count = 0u;
    while (count < K && lists[start + K + min(count, K - 1u)] != 0xffffffffu) { count++; }
    let asked = state[header + SEQ_TOP_K];
    let whole = asked == 0u || asked > K;
    var kept = count;
    if (!whole && asked < count) {
        kept = asked;
        // Candidates that equal the last one are kept as well.
        while (kept < count && lists[start + min(kept, K - 1u)] == lists[start + kept - 1u]) { kept++; }
    }
    var total = 0.0;
    for (var j = 0u; j < kept; j++) { total += weights[j]; }
    if (whole) {
        // The mass of the whole vocabulary: the sums of the chunks, scaled to the highest maximum.
        var highest = LOWEST;
        for (var g = 0u; g < info.groups; g++) { highest = max(highest, sums[(row * info.groups + g) * 4u]); }
        let sharpness = 1.0 / bitcast<f32>(state[header + SEQ_TEMPERATURE]);
        var mass = 0.0;
        for (var g = 0u; g < info.groups; g++) {
            let at = (row * info.groups + g) * 4u;
            mass += sums[at + 1u] * exp((sums[at] - highest) * sharpness);
        }
        total = max(total, mass);
    }
    let top_p = bitcast<f32>(state[header + SEQ_TOP_P]);
    let min_p = bitcast<f32>(state[header + SEQ_MIN_P]);
    var mass = weights[0];
    var chosen = 1u;
    while (chosen < kept) {
        let weight = weights[min(chosen, K - 1u)];
        if (weight == 0.0 || weight < min_p || (top_p < 1.0 && mass >= top_p * total)) { break; }
        mass += weight;
        chosen++;
    }
    // The share of the requested mass that a longer list would have held.
    if (whole && chosen == K) {
        // Rounded to 1/1024: sums in different orders agree on that.
        let missed = floor(max(0.0, 1.0 - mass / (min(top_p, 1.0) * total)) * 1024.0 + 0.5) / 1024.0;
        state[header + SEQ_MISSED] = bitcast<u32>(max(missed, bitcast<f32>(state[header + SEQ_MISSED])));
    }
    let lot = f32(philox(state[header + SEQ_SEED_LOW], state[header + SEQ_SEED_HIGH], state[header + SEQ_STEP]) >> 8u);
    let target_mass = lot * (1.0 / 16777216.0) * mass;
    var upto = 0.0;
    for (var j = 0u; j < chosen; j++) {
        upto += weights[j];
        if (upto > target_mass) { return lists[start + K + j]; }
    }
    return lists[start + K + chosen - 1u];
}

// Draws the token of a row and adds it to the sequence.
fn add_token(row: u32, seq: u32, header: u32) -> u32 {
    var token = 0u;
    if (K > 1u && bitcast<f32>(state[header + SEQ_TEMPERATURE]) > 0.0) {
        token = draw(row, header);
    } else {
        token = first(row);
    }
    for (var g = 0u; g < info.groups; g++) {
        if (sums[(row * info.groups + g) * 4u + 2u] != 0.0) { token = 0xffffffffu; }
    }
    let step = state[header + SEQ_STEP];
    let ring = info.all_seqs * SEQ + info.layers * info.all_seqs * ROW + seq * info.ring;
    state[ring + step % info.ring] = token;
    state[header + SEQ_STEP] = step + 1u;
    state[header + SEQ_TOKEN] = token;
    state[header + SEQ_POSITION] += info.advance;
    if (token / 32u < info.seen_words) { seen[seq * info.seen_words + token / 32u] |= 1u << (token % 32u); }
    return token;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let seq = state[info.row_seq_offset + group.x];
    let header = seq * SEQ;
    let temperature = bitcast<f32>(state[header + SEQ_TEMPERATURE]);
    let rows = select(1u, info.chunk, DRAFTS == 1u);
    var added = 0u;
    if (DRAFTS == 1u && thread == 0u) {
        on = select(0u, 1u, state[header + SEQ_STEP] < state[header + SEQ_LIMIT]);
    }
    while (added < rows) {
        if (DRAFTS == 1u) {
            if (workgroupUniformLoad(&on) == 0u) { break; }
        }
        let row = group.x * rows + added;
        if (K > 1u && thread < K) {
            let start = row * 2u * K;
            let difference = bitcast<f32>(lists[start + thread]) - bitcast<f32>(lists[start]);
            let some = temperature > 0.0 && lists[start + K + thread] != 0xffffffffu;
            weights[thread] = select(0.0, exp(difference * select(1.0, 1.0 / temperature, some)), some);
        }
        workgroupBarrier();
        added++;
        if (thread == 0u) {
            let token = add_token(row, seq, header);
            if (DRAFTS == 1u) {
                let confirmed = added < rows && token == state[info.drafts_offset + seq * DRAFTED + min(added, rows - 1u)];
                on = select(0u, 1u, confirmed && state[header + SEQ_STEP] < state[header + SEQ_LIMIT]);
            }
        }
    }
    for (var layer = thread; layer < info.layers; layer += THREADS) {
        state[info.all_seqs * SEQ + (layer * info.all_seqs + seq) * ROW + ROW_LEN] += added * info.advance;
    }
}
