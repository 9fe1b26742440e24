//! Prometheus' text form, read as strictly as it is specified.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

/// A page of metrics. What is not in order panics with the line.
#[derive(Debug, Default)]
pub struct Page {
    pub families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Labels,
    pub value: f64,
}

impl Page {
    pub fn parse(text: &str) -> Self {
        assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
        let mut page = Self::default();
        let mut now = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                let family = Family { help: help.into(), ..Family::default() };
                assert!(page.families.insert(name.into(), family).is_none(), "twice: {line}");
                now = name.into();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(name, now, "a TYPE without its HELP: {line}");
                let family = page.families.get_mut(name).unwrap();
                assert!(family.kind.is_empty() && family.samples.is_empty(), "twice: {line}");
                family.kind = kind.into();
            } else {
                assert!(!line.starts_with('#'), "{line}");
                let sample = Sample::parse(line);
                let family = page.families.get_mut(&now).unwrap_or_else(|| panic!("of no family: {line}"));
                assert!(family.may_hold(&now, &sample), "not of {now}, a {}: {line}", family.kind);
                family.samples.push(sample);
            }
        }
        page.families.values().for_each(Family::check);
        page
    }

    /// How many series there are.
    pub fn series(&self) -> usize {
        self.families.values().map(|family| family.samples.len()).sum()
    }

    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.families.values().flat_map(|family| &family.samples)
    }

    /// The sum of the series of this name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        };
        self.samples().filter(has).map(|sample| sample.value).sum()
    }

    /// The values that a label has anywhere.
    pub fn values(&self, label: &str) -> Vec<&str> {
        let mut values: Vec<_> = self.samples().filter_map(|sample| Some(sample.labels.get(label)?.as_str())).collect();
        values.sort_unstable();
        values.dedup();
        values
    }
}

impl Family {
    fn may_hold(&self, name: &str, sample: &Sample) -> bool {
        let rest = sample.name.strip_prefix(name);
        match self.kind.as_str() {
            "histogram" => {
                matches!(rest, Some("_sum" | "_count")) || rest == Some("_bucket") && sample.labels.contains_key("le")
            }
            "counter" => rest == Some("") && sample.value >= 0.0 && sample.value.is_finite(),
            _ => rest == Some(""),
        }
    }

    fn check(&self) {
        assert!(!self.kind.is_empty() && !self.help.is_empty(), "{self:?}");
        let mut seen: Vec<_> = self.samples.iter().map(|sample| (&sample.name, &sample.labels)).collect();
        seen.sort_unstable();
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "a series twice: {self:?}");
        if self.kind != "histogram" {
            return;
        }
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for sample in self.samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
            let mut labels = sample.labels.clone();
            let le = number(&labels.remove("le").unwrap());
            buckets.entry(labels).or_default().push((le, sample.value));
        }
        for (labels, buckets) in buckets {
            assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{buckets:?}");
            let count = |sample: &&Sample| sample.name.ends_with("_count") && sample.labels == labels;
            let count = self.samples.iter().find(count).expect("a histogram has a count").value;
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)));
        }
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
        let (name, mut rest) = line.split_at(end);
        assert!(is_name(name, ":"), "{line}");
        let mut labels = Labels::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                assert!(is_name(label, ""), "{line}");
                let (value, after) = quoted(after).unwrap_or_else(|| panic!("{line}"));
                assert!(labels.insert(label.into(), value).is_none(), "{line}");
                rest = after.strip_prefix(',').unwrap_or(after);
            }
            rest = &rest[1..];
        }
        let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(!value.contains(' '), "{line}");
        Self { name: name.into(), labels, value: number(value) }
    }
}

fn is_name(name: &str, also: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || also.contains(c);
    name.starts_with(|c: char| !c.is_ascii_digit()) && name.chars().all(is_part)
}

/// What stands before the closing quote, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        _ => text.parse().unwrap_or_else(|_| panic!("no number: {text}")),
    }
}
