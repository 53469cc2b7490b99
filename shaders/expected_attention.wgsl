// The logarithm of the attention that each slot can expect from the queries of coming tokens, up to a constant of the
// head. Coming queries are taken to be normally distributed, with the mean and the covariance of the latest ones. The
// effect of RoPE on them is averaged over the positions of the next tokens. Because rotation is linear, it is enough
// to rotate each latest query further.
// PASS 0: the mean rotation from the position of each query to those of the next `future` tokens: cosines, then
// sines.
// PASS 1: the mean of the rotated queries, and each rotated query minus the mean. PASS 2: the logarithms.
// include rows.wgsl
// include keys.wgsl
// Constants: THREADS, KV (F32 or F16), D, ROTATE, G (query heads of a KV head), QB (vectors at a time), PASS.
@group(0) @binding(0) var<storage, read_write> q: array<f32>;               // [n, heads D], rotated, oldest first
@group(0) @binding(1) var<storage, read_write> kv: array<vec4<u32>>;        // rows of D values, see cache/
@group(0) @binding(2) var<storage, read_write> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> rope: array<vec4<f32>>;      // [positions, D]
@group(0) @binding(4) var<storage, read_write> ahead: array<vec4<f32>>;     // [1 + n, heads D] queries, [n, D] rotations
@group(0) @binding(5) var<storage, read_write> out: array<f32>;             // [heads, slots]
struct Info {
    n: u32, kv_heads: u32, slots: u32, seq: u32, layer_table_offset: u32, positions: u32, future: u32, scale: f32,
}
@group(0) @binding(6) var<uniform> info: Info;

var<workgroup> vectors: array<vec4<f32>, QB * D / 4u>;

// The offset of the rotation of query i.
fn rotation(i: u32) -> u32 {
    return (1u + info.n) * info.kv_heads * G * (D / 4u) + i * (D / 4u);
}

// The row `i` of `q`, columns 4 c .. 4 c + 3 of a head.
fn query_part(i: u32, head: u32, c: u32) -> vec4<f32> {
    let at = (i * info.kv_heads * G + head) * D + 4u * c;
    return vec4<f32>(q[at], q[at + 1u], q[at + 2u], q[at + 3u]);
}

// Query i rotated further, columns 4 c .. 4 c + 3 of a head, c below D / 8, and their partners.
fn turned(i: u32, head: u32, c: u32) -> KeyPart {
    let a = query_part(i, head, c);
    let b = query_part(i, head, c + D / 8u);
    let cosines = ahead[rotation(i) + c];
    let sines = ahead[rotation(i) + c + D / 8u];
    return KeyPart(a * cosines - b * sines, b * cosines + a * sines);
}

// The mean rotation from the position of query i to those of the next tokens, for the column pairs 4 c .. 4 c + 3.
fn average_rotation(i: u32, c: u32) {
    var cosines = vec4<f32>(0.0);
    var sines = vec4<f32>(0.0);
    for (var j = 0u; j < info.future; j++) {
        // The next token is n - i positions after query i.
        let at = min(info.n - i + j, info.positions - 1u) * (D / 4u) + c;
        cosines += rope[at];
        sines += rope[at + D / 8u];
    }
    // Some scalings multiply cosines and sines by a factor. The queries contain it already, so it is divided out.
    let shrink = 1.0 / (rope[c] * f32(info.future));
    ahead[rotation(i) + c] = cosines * shrink;
    ahead[rotation(i) + c + D / 8u] = sines * shrink;
}

// The mean of a head's rotated queries, and each of them minus the mean, for the column pairs 4 c .. 4 c + 3.
fn centre(head: u32, c: u32) {
    var mean = KeyPart(vec4<f32>(0.0), vec4<f32>(0.0));
    for (var i = 0u; i < info.n; i++) {
        let part = turned(i, head, c);
        mean = KeyPart(mean.low + part.low, mean.high + part.high);
    }
    mean = KeyPart(mean.low / f32(info.n), mean.high / f32(info.n));
    let row_quads = info.kv_heads * G * D / 4u;
    let at = head * (D / 4u) + c;
    ahead[at] = mean.low;
    ahead[at + D / 8u] = mean.high;
    for (var i = 0u; i < info.n; i++) {
        let part = turned(i, head, c);
        ahead[(1u + i) * row_quads + at] = part.low - mean.low;
        ahead[(1u + i) * row_quads + at + D / 8u] = part.high - mean.high;
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let heads = info.kv_heads * G;
    // No `return` that depends on the invocation: the barriers below must be reached in uniform control flow.
    let pair = (group.x * THREADS + thread) % (D / 8u);
    if (PASS == 0u) {
        let i = (group.x * THREADS + thread) / (D / 8u);
        if (i < info.n) { average_rotation(i, pair); }
        return;
    }
    if (PASS == 1u) {
        let head = (group.x * THREADS + thread) / (D / 8u);
        if (head < heads) { centre(head, pair); }
        return;
    }
    let slot = group.x * THREADS + thread;
    let head = group.y;
    let entry = info.layer_table_offset + info.seq * ROW;
    let cap = state[entry + ROW_CAP];
    let inside = slot < min(info.slots, cap);
    let row = state[entry + ROW_BASE] + head / G * cap + slot;
    var mean = 0.0;
    var squares = 0.0;
    for (var first = 0u; first < 1u + info.n; first += QB) {
        workgroupBarrier();
        for (var e = thread; e < QB * D / 4u; e += THREADS) {
            let t = first + e / (D / 4u);
            var v = vec4<f32>(0.0);
            if (t <= info.n) { v = ahead[(t * heads + head) * (D / 4u) + e % (D / 4u)] * info.scale; }
            vectors[e] = v;
        }
        workgroupBarrier();
        // No `continue`: the next barrier must be reached in uniform control flow.
        if (inside) {
            var dots: array<f32, QB>;
            for (var j = 0u; j < QB; j++) { dots[j] = 0.0; }
            for (var c = 0u; c < D / 8u; c++) {
                let key = key_part(row, slot, c);
                for (var j = 0u; j < QB; j++) {
                    let at = j * (D / 4u) + c;
                    dots[j] += dot(key.low, vectors[at]) + dot(key.high, vectors[at + D / 8u]);
                }
            }
            for (var j = 0u; j < QB; j++) {
                if (first + j == 0u) { mean = dots[j]; } else { squares += dots[j] * dots[j]; }
            }
        }
    }
    if (inside) { out[head * info.slots + slot] = mean + 0.5 * squares / f32(info.n); }
}
