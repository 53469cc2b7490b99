//! The list of policies, and a policy as a value that has a text form.
use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Budget, CacheView, EvictionPolicy, ExpectedAttention, Full, H2o, KeepPlan, LastAttention, LazyEviction,
    Measurement, RKv, Random, RandomStep, SnapKv, StreamingLlm, ThinkClearly, ThinkH2o, ThinkToken, Vase,
};
use crate::{Error, ErrorKind, Result};

/// Every policy that comes with secateur, the default first.
pub static POLICIES: &[&dyn EvictionPolicy] = &[
    &ThinkClearly, // the default
    &ThinkToken,
    &ThinkH2o,
    &Full,
    &Random,
    &RandomStep,
    &LastAttention,
    &H2o,
    &SnapKv,
    &RKv,
    &LazyEviction,
    &ExpectedAttention,
    &Vase,
    &StreamingLlm,
];

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
/// traces, is its name. Listed policies are equal if their names are; an own policy, which may have parameters,
/// equals only its clones.
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
    /// A name that was read from JSON.
    Unlisted(Arc<Unlisted>),
}

impl PolicyRef {
    /// A value for your own policy. A value of a listed type, such as [`Full`], gives the listed policy.
    pub fn new<P: EvictionPolicy>(policy: P) -> Self {
        // The types of listed policies have no parameters.
        let listed = POLICIES.iter().find(|listed| Any::type_id(**listed) == TypeId::of::<P>());
        Self(listed.map_or_else(|| Source::Own(Arc::new(policy)), |listed| Source::Listed(*listed)))
    }
}

impl Deref for PolicyRef {
    type Target = dyn EvictionPolicy;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            Source::Listed(policy) => *policy,
            Source::Own(policy) => &**policy,
            Source::Unlisted(policy) => &**policy,
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
        match (&self.0, &other.0) {
            (Source::Own(own), Source::Own(other)) => Arc::ptr_eq(own, other),
            (Source::Own(_), _) | (_, Source::Own(_)) => false,
            _ => self.name() == other.name(),
        }
    }
}

impl<P: EvictionPolicy> From<P> for PolicyRef {
    fn from(policy: P) -> Self {
        Self::new(policy)
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
        let name = Cow::<'_, str>::deserialize(deserializer)?;
        // The trace of a run with an own policy can be read, so a name that is not listed is no error here.
        Ok(by_name(&name).unwrap_or_else(|_| Self(Source::Unlisted(Arc::new(Unlisted(name.into_owned()))))))
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
