// Reading cached keys. This text precedes a kernel that says "include keys.wgsl". It needs rows.wgsl, the kernel's
// binding `rope` ([positions, D]: cosines, then sines), its `info.positions`, and the constant ROTATE.
// ROTATE 0: keys were rotated to their positions when they were written. ROTATE 1: keys are stored unrotated, their
// position is their slot, and they are rotated whenever they are read, so that moving them adds no rounding.
struct KeyPart { low: vec4<f32>, high: vec4<f32> }

// Columns 4 c .. 4 c + 3 of the key in cache row `row`, and their partners, D / 2 columns further on. `slot` is the
// key's slot.
fn key_part(row: u32, slot: u32, c: u32) -> KeyPart {
    let a = stored(row, c);
    let b = stored(row, c + D / 8u);
    if (ROTATE == 0u) { return KeyPart(a, b); }
    let at = min(slot, info.positions - 1u) * (D / 4u) + c;
    let cosines = rope[at];
    let sines = rope[at + D / 8u];
    return KeyPart(a * cosines - b * sines, b * cosines + a * sines);
}
