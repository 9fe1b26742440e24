//! What an operator has an endpoint do, whatever its breaker, its rests and its limits say.

/// Whether an endpoint takes requests, by an operator's word. See [`Pool::drain`](crate::select::Pool::drain),
/// [`Pool::isolate`](crate::select::Pool::isolate) and [`Pool::reset`](crate::select::Pool::reset).
///
/// In neither of the two ways of being out is a request on its way cut off: it is finished, its retries go elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[repr(u8)]
pub enum AdminState {
    /// It takes what selection sends.
    #[default]
    InService,
    /// It takes nothing new, and is still [asked about](crate::AccountPoller): a key that is to be replaced, or spared for a while.
    Draining,
    /// It takes nothing new, and nobody asks about it: once what ran on it has ended, nothing that carries the key leaves.
    Isolated,
}

impl AdminState {
    pub(super) fn of(number: u8) -> Self {
        [Self::InService, Self::Draining, Self::Isolated]
            .into_iter()
            .find(|state| *state as u8 == number)
            .unwrap_or_default()
    }

    /// Its name in logs, metrics and snapshots.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::InService => "in_service",
            Self::Draining => "draining",
            Self::Isolated => "isolated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_survives_the_way_into_a_number_and_back() {
        for state in [AdminState::InService, AdminState::Draining, AdminState::Isolated] {
            assert_eq!(AdminState::of(state as u8), state);
        }
    }
}
