//! The scenarios that come with the lab.

use super::Scenario;

/// Their files, in the order in which they are told.
const FILES: [&str; 20] = [
    include_str!("scenarios/quota-fit.toml"),
    include_str!("scenarios/quota-over.toml"),
    include_str!("scenarios/quota-flood.toml"),
    include_str!("scenarios/bucket-fit.toml"),
    include_str!("scenarios/bucket-over.toml"),
    include_str!("scenarios/free-daily.toml"),
    include_str!("scenarios/spending-caps.toml"),
    include_str!("scenarios/in-flight.toml"),
    include_str!("scenarios/slow-key.toml"),
    include_str!("scenarios/dead-key.toml"),
    include_str!("scenarios/silent-key.toml"),
    include_str!("scenarios/die-and-heal.toml"),
    include_str!("scenarios/auth-storm.toml"),
    include_str!("scenarios/pool-storm.toml"),
    include_str!("scenarios/brown-out.toml"),
    include_str!("scenarios/broken-streams.toml"),
    include_str!("scenarios/burst.toml"),
    include_str!("scenarios/day-and-night.toml"),
    include_str!("scenarios/mixed-models.toml"),
    include_str!("scenarios/azure-hour.toml"),
];

impl Scenario {
    /// The scenarios that come with the lab.
    pub fn shipped() -> Vec<Self> {
        FILES.iter().map(|text| Self::from_toml(text).expect("what is shipped is valid, which a test checks")).collect()
    }
}
