//! The list of policies, and a policy as a value that has a text form.
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Budget, CacheView, EvictionPolicy, Full, H2o, KeepPlan, LastAttention, Measurement, RKv, Random, RandomStep,
    SnapKv, StreamingLlm, ThinkClearly, ThinkToken,
};
use crate::{Error, ErrorKind, Result};

/// Every policy that comes with secateur, the default first.
pub static POLICIES: &[&dyn EvictionPolicy] =
    &[&ThinkClearly, &ThinkToken, &Full, &Random, &RandomStep, &LastAttention, &H2o, &SnapKv, &RKv, &StreamingLlm];

/// The policy of that name among [`POLICIES`].
///
/// # Errors
/// [`ErrorKind::Input`] for an unknown name, with the known names.
pub fn by_name(name: &str) -> Result<PolicyRef> {
    let known = POLICIES.iter().find(|policy| policy.name() == name);
    known.map(|policy| PolicyRef(Source::Listed(*policy))).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Error {
    let known: Vec<&str> = POLICIES.iter().map(|policy| policy.name()).collect();
    Error::new(ErrorKind::Input, "unknown policy")
        .at("`policy`")
        .expected(format!("one of {}", known.join(", ")))
        .found(format!("{name:?}"))
}

/// A policy as a value: one of [`POLICIES`], or one of your own. Cheap to clone. Its text form, in JSON and in
/// traces, is its name. Two values are equal if their names are.
///
/// A name in JSON that is not listed still makes a value, so that the trace of a run with an own policy can be read.
/// Such a value has only a name: [`accepts`](EvictionPolicy::accepts) refuses every budget with a list of the known
/// policies.
///
/// ```
/// use secateur::policy::{Full, PolicyRef};
/// assert_eq!(PolicyRef::default().name(), "think-clearly");
/// assert_eq!(PolicyRef::from(Full), "full".parse::<PolicyRef>()?);
/// # Ok::<(), secateur::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PolicyRef(Source);

#[derive(Debug, Clone)]
enum Source {
    Listed(&'static dyn EvictionPolicy),
    Own(Arc<dyn EvictionPolicy>),
}

impl PolicyRef {
    /// An own policy.
    pub fn new(policy: impl EvictionPolicy + 'static) -> Self {
        Self(Source::Own(Arc::new(policy)))
    }
}

impl Deref for PolicyRef {
    type Target = dyn EvictionPolicy;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            Source::Listed(policy) => *policy,
            Source::Own(policy) => &**policy,
        }
    }
}

impl Default for PolicyRef {
    fn default() -> Self {
        Self(Source::Listed(POLICIES[0]))
    }
}

impl PartialEq for PolicyRef {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl<P: EvictionPolicy + 'static> From<P> for PolicyRef {
    fn from(policy: P) -> Self {
        Self::new(policy)
    }
}

impl From<&str> for PolicyRef {
    /// As [`by_name`]; a name that is not listed becomes a value that cannot run.
    fn from(name: &str) -> Self {
        by_name(name).unwrap_or_else(|_| Self::new(Unlisted(name.into())))
    }
}

impl FromStr for PolicyRef {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name(name)
    }
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for PolicyRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.name())
    }
}

impl<'de> Deserialize<'de> for PolicyRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*Cow::<'_, str>::deserialize(deserializer)?))
    }
}

/// The name of a policy that is not in the list. It cannot run.
#[derive(Debug)]
struct Unlisted(String);

impl EvictionPolicy for Unlisted {
    fn name(&self) -> &str {
        &self.0
    }

    fn needs(&self) -> Measurement {
        Measurement::Nothing
    }

    fn accepts(&self, _: Budget) -> Result<()> {
        Err(unknown(&self.0))
    }

    fn plan(&self, _: &CacheView<'_>) -> Result<KeepPlan> {
        Err(unknown(&self.0))
    }
}
