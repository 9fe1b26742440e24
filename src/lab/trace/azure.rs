//! The CSV of the Azure LLM inference traces (Azure/AzurePublicDataset on GitHub).

use super::{MAX_TOKENS, Record};
use crate::simulator;

/// The first line of such a file.
pub(super) const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// Reads rows; the times are of a local clock, and only their distances count.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// The first row's second: milliseconds from 1970 on would leave a float too few digits for 100 ns.
    base: Option<i64>,
}

impl Rows {
    pub(super) fn read(&mut self, row: &str) -> Result<Record, String> {
        let mut fields = row.split(',').map(str::trim);
        let (Some(time), Some(context), Some(generated), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(format!("{} columns instead of the three of {HEADER}", row.split(',').count()));
        };
        let Some((second, nanos)) = instant(time) else {
            return Err(format!("TIMESTAMP: {time:?} is not a time such as 2023-11-16 18:15:46.6805900"));
        };
        let base = *self.base.get_or_insert(second);
        Ok(Record {
            at_ms: (second - base) as f64 + f64::from(nanos) / 1e6,
            prompt_tokens: tokens("ContextTokens", context)?,
            reply_tokens: Some(tokens("GeneratedTokens", generated)?),
            ..Record::default()
        })
    }
}

fn tokens(column: &str, text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number <= MAX_TOKENS);
    number.ok_or_else(|| format!("{column}: {text:?} is not a whole number from 0 to {MAX_TOKENS}"))
}

/// The milliseconds of the whole second since 1970, and the nanoseconds after it.
fn instant(text: &str) -> Option<(i64, u32)> {
    let (date, time) = text.strip_suffix("+00:00").unwrap_or(text).split_once(' ')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let second = simulator::utc_millis(&format!("{date}T{time}Z"))?;
    let digits = fraction.len().clamp(1, 9) as u32;
    let plain = fraction.len() <= 9 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let fraction: u32 = plain.then(|| fraction.parse().ok()).flatten()?;
    Some((second, fraction * 10_u32.pow(9 - digits)))
}
