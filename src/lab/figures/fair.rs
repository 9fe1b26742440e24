//! What each key should get, and how far from it the keys are.
//!
//! Even use is fair among keys that may do the same; a key whose account may do little cannot be asked for as much. So all
//! keys are given more, evenly, until one has what its quota lets through; then the others go on without it (progressive
//! filling, which yields the max-min fair shares).

use crate::{lab::Scenario, simulator::Model};

/// Successful attempts that would be fair for each key of the scenario, of `total` in `span` seconds.
///
/// Keys that cannot serve from the start (disabled, or for management only) have none. What all quotas together let through
/// bounds the sum.
pub(super) fn shares(scenario: &Scenario, total: f64, span: f64) -> Vec<f64> {
    let world = &scenario.world;
    let usable: Vec<_> = world.keys.iter().map(|key| !key.disabled && !key.management).collect();
    let bounds: Vec<_> = world
        .keys
        .iter()
        .map(|key| {
            let siblings =
                world.keys.iter().zip(&usable).filter(|(other, usable)| **usable && other.account == key.account);
            allowance(scenario, &key.account, span) / siblings.count().max(1) as f64
        })
        .collect();
    let mut order: Vec<_> = (0..bounds.len()).filter(|index| usable[*index]).collect();
    order.sort_by(|a, b| bounds[*a].total_cmp(&bounds[*b]));
    let (mut shares, mut left, mut keys) = (vec![0.0; bounds.len()], total, order.len());
    for index in order {
        shares[index] = bounds[index].min(left / keys as f64);
        left -= shares[index];
        keys -= 1;
    }
    shares
}

/// How many requests an account's quotas let through in `span` seconds: of each window that has begun, all.
fn allowance(scenario: &Scenario, account: &str, span: f64) -> f64 {
    let world = &scenario.world;
    let Some(account) = world.accounts.iter().find(|candidate| candidate.name == account) else { return 0.0 };
    let windows = |window_s: f64| (span / window_s).max(1.0);
    let mut bound = f64::INFINITY;
    if let Some(quota) = &account.quota {
        bound = quota.requests as f64 * windows(quota.window_s);
    }
    if !world.models.is_empty() && world.models.iter().all(|model| Model::is_free(&model.id)) {
        bound = bound.min(account.free_per_minute as f64 * windows(60.0));
        if let Some(daily) = account.free_per_day {
            bound = bound.min(daily as f64 * windows(86_400.0));
        }
    }
    bound
}

/// Jain's index of what each got over what is fair, among those that should get something.
pub(super) fn jain(got: &[usize], fair: &[f64]) -> Option<f64> {
    let parts = || got.iter().zip(fair).filter(|(_, fair)| **fair > 0.0).map(|(got, fair)| *got as f64 / fair);
    let (sum, squares): (f64, f64) = (parts().sum(), parts().map(|part| part * part).sum());
    (squares > 0.0).then(|| sum * sum / (parts().count() as f64 * squares))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(accounts: &str, keys: &str) -> Scenario {
        Scenario::from_toml(&format!(
            r#"
            name = "fair"
            length_s = 600.0
            [world]
            accounts = [{accounts}]
            keys = [{keys}]
            models = [{{ id = "acme/swift-1" }}]
            "#
        ))
        .unwrap()
    }

    #[test]
    fn a_share_is_even_up_to_what_the_quota_lets_through() {
        let scenario = scenario(
            r#"{ name = "small", quota = { requests = 6 } }, { name = "large" }"#,
            r#"{ label = "s-1", account = "small" }, { label = "s-2", account = "small" },
               { label = "l-1", account = "large" }, { label = "l-2", account = "large" },
               { label = "off", account = "large", disabled = true }"#,
        );
        // 60 in ten minutes for two keys of the small account
        assert_eq!(shares(&scenario, 80.0, 600.0), [20.0, 20.0, 20.0, 20.0, 0.0]);
        assert_eq!(shares(&scenario, 400.0, 600.0), [30.0, 30.0, 170.0, 170.0, 0.0]);
    }

    #[test]
    fn the_index_is_one_when_all_get_their_share_and_one_over_the_keys_when_one_gets_all() {
        assert_eq!(jain(&[30, 170, 0], &[30.0, 170.0, 0.0]), Some(1.0));
        assert_eq!(jain(&[100, 0, 0, 0], &[25.0; 4]), Some(0.25));
        assert_eq!(jain(&[0, 0], &[0.0, 0.0]), None);
        assert_eq!(jain(&[0, 0], &[1.0, 1.0]), None);
    }
}
