// The products of one packed row with N vectors. A kernel that includes this text includes weights.wgsl as well, and
// declares the vectors as `x: array<vec4<f32>>` and `info.cols`.
// With NORM 1, each weight is multiplied by the factor of its column first: `gain(c)` has those of the columns 4 c to
// 4 c + 3. The factors are multiplied into the weights and not into the vectors because there is one row and up to N
// vectors.
// Constants: LANES (invocations that share the row, a power of two), N, NORM.

// The word of the low plane with four `t` of a block, of the vec4 (or two) that holds the block.
fn low_word(low: vec4<u32>, low_next: vec4<u32>, t: u32) -> u32 {
    if (LOW_BITS == 8u && t >= 4u) { return low_next[t % 4u]; }
    return low[(t / LOW_FOURS) % 4u];
}

// The share of invocation `lane` in the products of the row that starts at `row_start` with the vectors that start at
// `vectors`, both counted in vec4s. The sums of the LANES shares are the products.
fn dots(p: Planes, row_start: u32, lane: u32, vectors: array<u32, N>) -> array<f32, N> {
    var first = vectors;
    var acc: array<f32, N>;
    for (var i = 0u; i < N; i++) { acc[i] = 0.0; }
    // only plain weights
    if (!QUANTIZED) {
        for (var k = 8u * lane; k < info.cols; k += 8u * LANES) {
            var o = octet(p, row_start, k);
            if (NORM != 0u) {
                o.a *= gain(k / 4u);
                o.b *= gain(k / 4u + 1u);
            }
            for (var i = 0u; i < N; i++) {
                acc[i] += dot(o.a, x[first[i] + k / 4u]) + dot(o.b, x[first[i] + k / 4u + 1u]);
            }
        }
    }
    // end
    // only quantized weights
    if (QUANTIZED) {
        // A step takes a block of 32 columns, whose quants are unpacked once for all vectors.
        for (var b = lane; b < info.cols / 32u; b += LANES) {
            let s = block_scales(p, row_start, b);
            var low = w[row_start + b * LOW_BITS / 4u];
            var low_next = low;
            if (LOW_BITS == 8u) { low_next = w[row_start + 2u * b + 1u]; }
            if (LOW_BITS == 2u && (b & 1u) != 0u) { low = low.zwzw; }
            var high = vec2<u32>(0u);
            if (HIGH_BITS == 1u) { high = vec2<u32>(word_at(row_start + p.high, b)); }
            if (HIGH_BITS == 2u) {
                let both = w[row_start + p.high + b / 2u];
                high = select(both.xy, both.zw, (b & 1u) != 0u);
            }
            var v: array<vec4<f32>, 8>;
            v[0] = quants(low_word(low, low_next, 0u), high.x, 0u);
            v[1] = quants(low_word(low, low_next, 1u), high.x, 1u);
            v[2] = quants(low_word(low, low_next, 2u), high.x, 2u);
            v[3] = quants(low_word(low, low_next, 3u), high.x, 3u);
            v[4] = quants(low_word(low, low_next, 4u), high.y, 4u);
            v[5] = quants(low_word(low, low_next, 5u), high.y, 5u);
            v[6] = quants(low_word(low, low_next, 6u), high.y, 6u);
            v[7] = quants(low_word(low, low_next, 7u), high.y, 7u);
            if (HAS_MINIMUM) {
                for (var j = 0u; j < 4u; j++) {
                    v[j] = s.scale.x * v[j] + s.plus.x;
                    v[j + 4u] = s.scale.y * v[j + 4u] + s.plus.y;
                }
            }
            if (NORM != 0u) {
                for (var j = 0u; j < 8u; j++) { v[j] *= gain(8u * b + j); }
            }
            for (var i = 0u; i < N; i++) {
                let at = first[i] + 8u * b;
                let low_half = dot(v[0], x[at]) + dot(v[1], x[at + 1u]) + dot(v[2], x[at + 2u]) + dot(v[3], x[at + 3u]);
                let high_half = dot(v[4], x[at + 4u]) + dot(v[5], x[at + 5u]) + dot(v[6], x[at + 6u]) + dot(v[7], x[at + 7u]);
                if (HAS_MINIMUM) {
                    acc[i] += low_half + high_half;
                } else if (SHARE == 32u) {
                    acc[i] += s.scale.x * (low_half + high_half);
                } else {
                    acc[i] += s.scale.x * low_half + s.scale.y * high_half;
                }
            }
        }
    }
    // end
    return acc;
}
