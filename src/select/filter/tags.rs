use tokio::time::Instant;

use super::{Filter, Fit};
use crate::{endpoint::Endpoint, request::RequestContext};

/// Lets only keys serve that have all of these [tags](crate::ApiKey::tags), whatever the request.
///
/// What one request demands, it says itself, with [`RequestContext::require`], and every selector heeds it; this filter is for
/// what a whole stack demands, such as one of several over the same pool.
///
/// A stack for one region:
///
/// ```
/// use tower_openrouter::{ApiKey, Balancer, select::{Pool, RequireTags}};
///
/// let pool = Pool::new([ApiKey::new("sk-or-v1-a")?.tags(["eu"]), ApiKey::new("sk-or-v1-b")?.tags(["us"])])?;
/// let builder = Balancer::builder(pool).filter(RequireTags::new(["eu"]));
/// # let _ = builder;
/// # Ok::<(), tower_openrouter::KeyError>(())
/// ```
///
/// A request that asks for more than its stack does:
///
/// ```
/// use http::Request;
/// use tower_openrouter::{RequestContext, select::RequireTags};
///
/// let filter = RequireTags::new(["eu", "no-training"]);
/// let mut request = Request::new(());
/// RequestContext::of(&mut request).require(["team-a"]);
/// # let _ = filter;
/// ```
#[derive(Debug, Clone)]
pub struct RequireTags(Box<[Box<str>]>);

impl RequireTags {
    /// Demands all of these.
    pub fn new<T: Into<Box<str>>>(tags: impl IntoIterator<Item = T>) -> Self {
        Self(tags.into_iter().map(Into::into).collect())
    }
}

impl Filter for RequireTags {
    fn kind(&self, _request: &RequestContext) -> Option<u64> {
        Some(0)
    }

    fn judge(&self, endpoint: &Endpoint, _request: &RequestContext, _now: Instant) -> Fit {
        if has_all(endpoint, &self.0) { Fit::Yes } else { Fit::No }
    }
}

/// Whether the endpoint's key has all of these tags.
pub(super) fn has_all(endpoint: &Endpoint, tags: &[Box<str>]) -> bool {
    tags.iter().all(|tag| endpoint.key().has_tag(tag))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;
    use crate::ApiKey;

    fn judge(has: &[&str], demanded: &[&str]) -> Fit {
        let endpoint = Endpoint::new(ApiKey::new("key").unwrap().tags(has.to_vec()));
        RequireTags::new(demanded.to_vec()).judge(&endpoint, &RequestContext::new(), Instant::now())
    }

    #[test]
    fn a_key_needs_every_tag() {
        for (has, demanded, expected) in [
            (&["eu", "team-a"][..], &["eu"][..], Fit::Yes),
            (&["eu", "team-a"], &["team-a", "eu"], Fit::Yes),
            (&["eu"], &["eu", "team-a"], Fit::No),
            (&["eu"], &["EU"], Fit::No),
            (&[], &["eu"], Fit::No),
            (&[], &[], Fit::Yes),
        ] {
            assert_eq!(judge(has, demanded), expected, "{has:?} {demanded:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_the_subset_relation(has in 0..32_u8, demanded in 0..32_u8) {
            let names = ["a", "b", "c", "d", "e"];
            let set = |bits: u8| (0..5).filter(|bit| bits >> bit & 1 == 1).map(|bit| names[bit]).collect::<Vec<_>>();
            let fits = judge(&set(has), &set(demanded)) == Fit::Yes;
            prop_assert_eq!(fits, has & demanded == demanded);
        }
    }
}
