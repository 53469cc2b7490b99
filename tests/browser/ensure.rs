//! An assertion that returns its message.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {{
        // Named first: a comparison of numbers that may be NaN is false then, and the assertion fails.
        let holds: bool = $condition;
        if !holds {
            return Err(format!($($message)+));
        }
    }};
}
