//! What every target of cargo-fuzz needs: the target by its name, and an allocator that counts.
#[path = "../tests/it/common/memory.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod memory;
mod targets;

/// Gives `data` to the target `name` and checks what it needs.
pub fn check(name: &str, data: &[u8]) {
    let (_, target) = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    targets::check(*target, data, |call| memory::peak_of(call).max(0) as usize);
}
