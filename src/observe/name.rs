//! The figures' names, as [the table](super#metrics) has them.

use metrics::Unit;

/// Upper bounds for histograms of seconds, from a hundredth to more than a minute: those that OpenTelemetry's conventions
/// give for the duration of model calls. Most exporters want to be told.
pub const BUCKETS: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! names {
    ($($constant:ident $name:literal $kind:ident $unit:ident $help:literal,)*) => {
        $(pub(crate) const $constant: &str = concat!("tower_openrouter_", $name);)*

        const ALL: &[(&str, Kind, Unit, &str)] = &[$(($constant, Kind::$kind, Unit::$unit, $help),)*];
    };
}

names! {
    REQUESTS "requests_total" Counter Count "Requests, by how they came out for their callers.",
    IN_FLIGHT "requests_in_flight" Gauge Count "Requests whose answers have not ended.",
    DURATION "request_duration_seconds" Histogram Seconds "Seconds from a request to the end of its answer; successes only.",
    FIRST_OUTPUT "time_to_first_output_seconds" Histogram Seconds
        "Seconds from a request to the first output of its answer; successes only.",
    FAILED_DURATION "request_failed_duration_seconds" Histogram Seconds
        "Seconds from a request to its end, where that is no success.",
    TOKENS "tokens_total" Counter Count "Tokens that answers report, of prompts (input) and completions (output).",
    COST "cost_nano_usd_total" Counter Count "What answers say they cost, in billionths of a US dollar.",
    ATTEMPTS "attempts_total" Counter Count "Attempts started on a key.",
    ATTEMPTS_ENDED "attempts_ended_total" Counter Count "Attempts ended on a key, by how they came out.",
    ATTEMPTS_IN_FLIGHT "attempts_in_flight" Gauge Count "Attempts on a key whose answers have not ended.",
    KEY_TOKENS "key_tokens_total" Counter Count "Tokens used on a key, of prompts (input) and completions (output).",
    KEY_COST "key_cost_nano_usd_total" Counter Count "What was charged to a key, in billionths of a US dollar.",
    KEY_FIRST_OUTPUT "key_recent_first_output_seconds" Gauge Seconds
        "Seconds to the first output on a key of late; it leaps to peaks and decays within 10 s.",
    KEY_UP "key_up" Gauge Count "1 where a key may serve, 0 while it rests or its breaker is shut.",
    KEY_REST "key_rest_seconds" Gauge Seconds "Seconds until the rest of a key ends; 0 where it does not rest.",
    BREAKER_STATE "key_breaker_state" Gauge Count
        "Breaker of a key: 0 closed, 1 half-open, 2 open, 3 isolated by hand, -1 switched off.",
    BREAKER_TRIPS "key_breaker_trips_total" Counter Count "How often the breaker of a key opened.",
    SPENDABLE "key_spendable_usd" Gauge Count "US dollars a key may spend now, less what is reserved.",
    KEYS "keys" Gauge Count "Keys, by whether they may serve.",
    KEYS_RESTING "keys_resting" Gauge Count "Keys that rest, by the cause.",
    RESTS "rests" Gauge Count "Rests that no single key has, such as of a model at all its providers, by how wide they are.",
    ROTATIONS "key_rotations_total" Counter Count
        "Attempts on another key at once, by the cause of the failure before.",
    RETRIES "retries_total" Counter Count "Attempts after a wait, by the cause of the failure before.",
    BUDGET_REFUSALS "retry_budget_refusals_total" Counter Count "Retries that the retry budget refused.",
    GIVEN_UP "given_up_total" Counter Count "Failed answers passed on, by why they were not tried again.",
    HEDGES "hedges_total" Counter Count "Second attempts sent beside ones that were late.",
    HEDGES_WON "hedges_won_total" Counter Count "Second attempts whose answer was the one given.",
    PANIC_PICKS "panic_picks_total" Counter Count "Requests to keys that were out because they fail.",
    WAITING "requests_waiting" Gauge Count "Requests that wait for a key.",
}

/// Gives the recorder in place the description and unit of every figure. Calling it again does no harm.
pub fn describe() {
    for (name, kind, unit, help) in ALL.iter().copied() {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, unit, help),
            Kind::Gauge => metrics::describe_gauge!(name, unit, help),
            Kind::Histogram => metrics::describe_histogram!(name, unit, help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_figure_and_no_other() {
        let page = include_str!("../observe.rs");
        let rows = page.lines().filter_map(|line| line.strip_prefix("//! | `"));
        let mut told: Vec<(String, &str)> = Vec::new();
        for row in rows {
            let (names, rest) = row.split_once(" | ").unwrap();
            let names = names.split(", ").map(|name| format!("tower_openrouter_{}", name.trim_matches('`')));
            told.extend(names.map(|name| (name, rest)));
        }
        for (name, kind, unit, _) in ALL {
            let Some((_, row)) = told.iter().find(|(told, _)| told == name) else {
                panic!("{name} is not in the table")
            };
            assert!(row.starts_with(&format!("{kind:?}").to_lowercase()), "{name}: {row}");
            assert_eq!(row.contains(", s;"), *unit == Unit::Seconds, "{name}: {row}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        }
        assert_eq!(told.len(), ALL.len());
    }
}
