// The rotated queries of the latest tokens of each sequence, in a ring indexed by position.
// LOAD 0: stores rows of a chunk (source) in the ring (dest), the latest `width` of each sequence. LOAD 1: loads the
// latest `n` rows of one sequence from the ring (source) into dest, oldest first. The kernel only moves vectors, so
// it is exact.
// Constants: THREADS, LOAD.
@group(0) @binding(0) var<storage, read_write> source: array<vec4<f32>>;    // [n, cols], or the ring: [seqs, width, cols]
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> dest: array<vec4<f32>>;      // the ring, or [n, cols]
struct Info { n: u32, quads: u32, chunk: u32, row_seq_offset: u32, width: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(3) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y;
    if (id.x >= info.quads || i >= info.n) { return; }
    let seq = state[info.row_seq_offset + i / info.chunk];
    let offset = i % info.chunk;
    let position = state[seq * SEQ + SEQ_POSITION];
    if (LOAD == 1u) {
        // `position` is that of the next token. Row i is the query of the token n - i positions before it.
        let at = (position - info.n + i) % info.width;
        dest[i * info.quads + id.x] = source[(seq * info.width + at) * info.quads + id.x];
    } else {
        if (offset + info.width < info.chunk) { return; }
        let at = (position + offset) % info.width;
        dest[(seq * info.width + at) * info.quads + id.x] = source[i * info.quads + id.x];
    }
}
