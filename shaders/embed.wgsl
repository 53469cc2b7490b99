// out[i, :] = table[ids[i] - shard_first_row, :] for the ids that are in this shard of rows. Other rows of out stay
// as they are.
// PENDING 0: the i-th id is ids[i]. PENDING 1: ids is the state, and the id is the pending token of the sequence that
// the state lists at row_seq_offset + i. PENDING 2: ids is the state; row i is token i % chunk of those that the
// sequence at row_seq_offset + i / chunk has at drafts_offset.
// An invocation writes 8 columns. An id outside the vocabulary gives a row of zeros, which the shard with
// shard_first_row = 0 writes.
// Constants: THREADS, DTYPE, PENDING.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;  // the table: [rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;      // [n], or the state
@group(0) @binding(2) var<storage, read_write> out: array<f32>;      // [n, cols]
struct Info {
    n: u32, cols: u32, shard_first_row: u32, rows: u32,
    vocab: u32, row_seq_offset: u32, chunk: u32, drafts_offset: u32,
}
@group(0) @binding(3) var<uniform> info: Info;

// include weights.wgsl

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let k = 8u * id.x;
    let i = id.y;
    if (k >= info.cols || i >= info.n) { return; }
    var place = i;
    if (PENDING == 1u) { place = ids[info.row_seq_offset + i] * SEQ + SEQ_TOKEN; }
    if (PENDING == 2u) {
        place = info.drafts_offset + ids[info.row_seq_offset + i / info.chunk] * DRAFTED + i % info.chunk;
    }
    let token = ids[place];
    let inside = token >= info.shard_first_row && token - info.shard_first_row < info.rows;
    let unknown = token >= info.vocab && info.shard_first_row == 0u;
    if (!inside && !unknown) { return; }
    var o = Octet(vec4<f32>(0.0), vec4<f32>(0.0));
    if (inside) {
        let p = planes(info.cols);
        o = octet(p, (token - info.shard_first_row) * p.size, k);
    }
    let first = i * info.cols + k;
    for (var j = 0u; j < 4u; j++) {
        out[first + j] = o.a[j];
        out[first + 4u + j] = o.b[j];
    }
}
