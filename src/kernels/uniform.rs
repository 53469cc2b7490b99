//! The uniform of a shader as a Rust struct, laid out as WGSL lays it out.

/// A member of a uniform struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    /// The name, the same in Rust and in WGSL.
    pub name: &'static str,
    /// The scalar type: `u32` or `f32`.
    pub scalar: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
}

/// A uniform that `uniform!` declared. The shader tests compare its members with naga's view of the
/// shader's `struct Info`.
pub trait Uniform: bytemuck::Pod {
    /// The members, in order.
    const MEMBERS: &'static [Member];
}

/// Declares the uniform of a shader: a `#[repr(C)]` struct of `u32` and `f32` members that implements [`Uniform`].
///
/// The names and the order are those of `struct Info` in the WGSL. A uniform is a whole number of 16-byte rows, so a
/// struct that is shorter ends in `pad0`, `pad1`, …, in both languages.
///
/// ```ignore
/// uniform! {
///     /// The uniform of `rms_norm.wgsl`.
///     struct Info { n: u32, cols: u32, eps: f32, first_row: u32 }
/// }
/// ```
macro_rules! uniform {
    ($(#[$meta:meta])* struct $name:ident { $($member:ident: $scalar:ident),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name { $($member: $scalar),* }

        const _: () = assert!(size_of::<$name>().is_multiple_of(16), "a uniform is a whole number of 16-byte rows");

        impl $crate::kernels::uniform::Uniform for $name {
            const MEMBERS: &'static [$crate::kernels::uniform::Member] = &[$($crate::kernels::uniform::Member {
                name: stringify!($member),
                scalar: stringify!($scalar),
                offset: std::mem::offset_of!($name, $member),
            }),*];
        }
    };
}
pub(crate) use uniform;
