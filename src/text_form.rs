//! Values that have one text form, used on the command line, in JSON and in traces.

/// Implements serde by `Display` and `FromStr`.
macro_rules! serde_as_text {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
                text.parse().map_err(|e: $crate::Error| serde::de::Error::custom(e.on_one_line()))
            }
        }
    )+};
}

/// Gives the variants of an enum their names, and from them `Display`, `FromStr` and serde. `$field` is the field of
/// a request that holds such a value; an error names it.
macro_rules! named_variants {
    ($type:ident, $what:literal, $field:literal, { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl $type {
            /// Every value with its name.
            pub const NAMES: &[(&'static str, Self)] = &[$(($name, Self::$variant)),+];

            /// The name of this value.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                let known = Self::NAMES.iter().find(|(name, _)| *name == text);
                known.map(|(_, value)| *value).ok_or_else(|| {
                    let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
                    let (last, others) = names.split_last().expect("an enum has variants");
                    $crate::Error::new($crate::ErrorKind::Input, concat!("this is not ", $what))
                        .at(concat!("`", $field, "`"))
                        .expected(format!("{} or {last}", others.join(", ")))
                        .found(format!("{text:?}"))
                })
            }
        }

        $crate::text_form::serde_as_text!($type);
    };
}

pub(crate) use {named_variants, serde_as_text};
