//! Recorded traffic: what is read, what is refused and where, and that nothing breaks the reader.

use std::path::Path;

use proptest::prelude::*;
use tower_openrouter::{
    lab::{
        Scenario,
        trace::{Record, Trace},
    },
    request::Priority,
};

fn read(text: &str) -> Result<Trace, String> {
    Trace::read(text.as_bytes()).map_err(|error| error.to_string())
}

/// The value below which a part of them lies, of values in order.
fn quantile(values: &[f64], part: f64) -> f64 {
    values[((values.len() - 1) as f64 * part).round() as usize]
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn a_record_is_read_as_it_was_written_and_names_what_is_documented() {
    let record = Record {
        at_ms: 12.25,
        model: Some("acme/swift-1".into()),
        prompt_tokens: 900,
        reply_tokens: Some(80),
        max_tokens: Some(500),
        stream: Some(true),
        session: Some("7".into()),
        priority: Some(Priority::Low),
        status: Some(200),
        ending: Some("served".into()),
        attempts: Some(2),
        waited_ms: Some(1.5),
        first_output_ms: Some(700.0),
        end_ms: Some(1_900.0),
        cost: Some(0.001),
    };
    let line = serde_json::to_string(&record).unwrap();
    assert_eq!(
        line,
        "{\"at_ms\":12.25,\"model\":\"acme/swift-1\",\"prompt_tokens\":900,\"reply_tokens\":80,\"max_tokens\":500,\
         \"stream\":true,\"session\":\"7\",\"priority\":\"low\",\"status\":200,\"ending\":\"served\",\"attempts\":2,\
         \"waited_ms\":1.5,\"first_output_ms\":700.0,\"end_ms\":1900.0,\"cost\":0.001}"
    );
    assert_eq!(read(&line).unwrap().records(), [Record { at_ms: 0.0, ..record }]);
    let least = Record { prompt_tokens: 1, ..Record::default() };
    assert_eq!(serde_json::to_string(&least).unwrap(), r#"{"at_ms":0.0,"prompt_tokens":1}"#);
}

#[test]
fn requests_are_put_in_the_order_of_their_arrival() {
    let trace = read(
        "{\"at_ms\": 5000.5, \"prompt_tokens\": 2}\n\n{\"at_ms\": 4000, \"prompt_tokens\": 1, \"more\": [1]}\r\n\
         {\"at_ms\": 9000, \"prompt_tokens\": 3, \"reply_tokens\": 7, \"max_tokens\": 9}",
    )
    .unwrap();
    let seen: Vec<_> =
        trace.records().iter().map(|record| (record.at_ms, record.prompt_tokens, record.reply())).collect();
    assert_eq!(seen, [(0.0, 1, None), (1_000.5, 2, None), (5_000.0, 3, Some(7))]);
    assert_eq!(trace.span().as_secs_f64(), 5.0);
}

#[test]
fn mistakes_are_named_with_their_line() {
    let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n";
    for (text, problem) in [
        ("", "line 1: there is no request in it"),
        ("{\"at_ms\":0,\"prompt_tokens\":1}\n{\"at_ms\":1}", "line 2: missing field `prompt_tokens`, column 11"),
        ("{\"at_ms\":0,\"prompt_tokens\":1}\nnonsense", "line 2: expected ident, column 2"),
        ("{\"at_ms\":0,\"prompt_tokens\":-1}", "line 1: invalid value: integer `-1`, expected u64, column 29"),
        ("{\"at_ms\":1e300,\"prompt_tokens\":1}", "line 1: at_ms: 1000000"),
        ("{\"at_ms\":0,\"prompt_tokens\":10000001}", "line 1: prompt_tokens: 10000001 is more than 10000000"),
        ("{\"at_ms\":0,\"prompt_tokens\":1,\"priority\":\"x\"}", "line 1: priority: \"x\" is not high, normal or low"),
        ("{\"at_ms\":0,\"prompt_tokens\":1}\n{\"at_ms\":1e12,\"prompt_tokens\":1}", "line 3: it is longer than a year"),
        (csv.lines().next().unwrap(), "line 2: there is no request in it"),
        (&format!("{csv}2023-11-16 18:15:47,1"), "line 3: 2 columns instead of the three of TIMESTAMP,"),
        (&format!("{csv}2023-11-31 18:15:47,1,1"), "line 3: TIMESTAMP: \"2023-11-31 18:15:47\" is not a time"),
        (&format!("{csv}2023-11-16 18:15:47.1234567890,1,1"), "line 3: TIMESTAMP"),
        (&format!("{csv}2023-11-16 18:15:47,1,-1"), "line 3: GeneratedTokens: \"-1\" is not a whole number"),
        (&format!("{{{}\n", " ".repeat(1 << 17)), "line 1: is longer than 65536 bytes"),
    ] {
        let found = read(text).expect_err(problem);
        assert!(found.starts_with(&format!("trace: {problem}")), "{found}\n{problem}");
    }
    let error = Trace::read(&b"{\"at_ms\":0,\"prompt_tokens\":1}\n\xff\xfe"[..]).unwrap_err();
    assert_eq!((error.line(), error.to_string().as_str()), (2, "trace: line 2: is not UTF-8"));
    let error = Trace::open("tests/data/absent.csv").unwrap_err();
    assert!(error.line() == 0 && error.to_string().starts_with("trace: tests/data/absent.csv: "), "{error}");
}

#[test]
fn the_rows_of_the_azure_trace_are_read_to_the_last_digit() {
    let trace = Trace::open("tests/data/azure-llm-2023-conv-200.csv").unwrap();
    let records = trace.records();
    assert_eq!(records.len(), 200);
    let first = |number: usize| {
        let record = &records[number];
        (record.at().as_nanos(), record.prompt_tokens, record.reply_tokens)
    };
    assert_eq!((first(0), first(1)), ((0, 374, Some(44)), (4_314_579_000, 396, Some(109))));
    let tokens: u64 = records.iter().map(|record| record.prompt_tokens + record.reply().unwrap()).sum();
    assert_eq!((first(199), tokens), ((61_263_537_000, 1_143, Some(409)), 227_745));
}

/// The figures that stand beside the file.
#[test]
fn the_hour_of_the_azure_trace_has_the_figures_that_are_told_of_it() {
    let file = Path::new("../shared/data/azure-llm-2023-conv.csv");
    let Ok(trace) = Trace::open(file) else {
        println!("skipped: {} is not there", file.display());
        return;
    };
    let records = trace.records();
    assert_eq!((records.len(), trace.span().as_secs()), (19_366, 3_501));
    let gaps: Vec<f64> = records.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).collect();
    let spread = mean(&gaps.iter().map(|gap| (gap - mean(&gaps)).powi(2)).collect::<Vec<_>>()).sqrt() / mean(&gaps);
    assert!((spread - 1.09).abs() < 0.005, "{spread}");
    let per = |seconds: f64| {
        let mut counts = vec![0; (trace.span().as_secs_f64() / seconds) as usize + 1];
        records.iter().for_each(|record| counts[(record.at_ms / 1e3 / seconds) as usize] += 1);
        counts
    };
    assert_eq!(per(1.0).iter().max(), Some(&16));
    assert_eq!((per(60.0).iter().min(), per(60.0).iter().max()), (Some(&37), Some(&507)));
    let prompts = sorted(records.iter().map(|record| record.prompt_tokens as f64));
    let replies = sorted(records.iter().map(|record| record.reply().unwrap() as f64));
    let table = |values: &[f64]| [0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0].map(|part| quantile(values, part));
    assert_eq!(table(&prompts), [181.0, 396.0, 1_020.0, 1_189.0, 2_735.0, 4_083.0, 4_142.0, 14_050.0]);
    assert_eq!(table(&replies), [41.0, 85.0, 129.0, 395.0, 424.0, 451.0, 601.0, 1_000.0]);
    assert_eq!((mean(&prompts).round(), mean(&replies).round()), (1_155.0, 211.0));
}

#[test]
fn a_trace_takes_the_place_of_arrivals_and_sizes_and_the_mix_tells_the_rest() {
    let scenario = Scenario::from_toml(
        r#"
        name = "replayed"
        length_s = 3600
        mix = [{ model = "m/one", prompt_tokens = { kind = "fixed", tokens = 5 },
                 reply_tokens = { kind = "fixed", tokens = 6 }, stream = 1, low = 1, deadline_s = 9 }]
        [world]
        models = [{ id = "m/one" }, { id = "m/two" }]
        "#,
    )
    .unwrap();
    let trace = read(
        "{\"at_ms\":1000,\"prompt_tokens\":70}\n\
         {\"at_ms\":3500,\"prompt_tokens\":80,\"max_tokens\":90,\"model\":\"m/two\",\"stream\":false,\"priority\":\"high\"}\n\
         {\"at_ms\":4000,\"prompt_tokens\":0,\"reply_tokens\":0,\"model\":\"m/three\",\"session\":\"s\"}",
    );
    let asks = scenario.clone().with_trace(trace.unwrap()).unwrap();
    assert_eq!(asks.length_s, 4.0);
    let seen: Vec<_> = asks
        .asks(1)
        .into_iter()
        .map(|ask| {
            (ask.at.as_millis(), ask.model, ask.prompt_tokens, ask.reply_tokens, ask.stream, ask.priority, ask.session)
        })
        .collect();
    let named = |name: &str| name.to_owned();
    assert_eq!(
        seen,
        [
            (0, named("m/one"), 70, 6, true, Priority::Low, None),
            (2_500, named("m/two"), 80, 90, false, Priority::High, None),
            (3_000, named("m/one"), 1, 1, true, Priority::Low, Some(named("s"))),
        ]
    );
    let mut warming = scenario;
    warming.warm_up_s = 4.0;
    let refused = warming.with_trace(read("{\"at_ms\":1000,\"prompt_tokens\":70}").unwrap()).unwrap_err();
    assert_eq!(refused.to_string(), "warm_up_s: must be below the 1 s of the trace");
}

#[test]
fn a_scenarios_file_may_name_the_trace_beside_it() {
    let text = |file: &str| {
        format!(
            "name = \"replayed\"\nlength_s = 10\narrivals = {{ rate = {{ kind = \"trace\", file = \"{file}\" }} }}\n\
             mix = [{{ model = \"m/one\", prompt_tokens = {{ kind = \"fixed\", tokens = 5 }},\n\
             reply_tokens = {{ kind = \"fixed\", tokens = 6 }} }}]\nworld = {{ models = [{{ id = \"m/one\" }}] }}\n"
        )
    };
    let folder = std::env::temp_dir().join(format!("lab-trace-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("some.jsonl"), "{\"at_ms\":1,\"prompt_tokens\":70}\n").unwrap();
    let open = |file: &str| {
        std::fs::write(folder.join("scenario.toml"), text(file)).unwrap();
        Scenario::open(folder.join("scenario.toml")).map_err(|error| error.to_string())
    };
    let found = open("some.jsonl").map(|scenario| scenario.asks(1)[0].prompt_tokens);
    let absent = open("none.jsonl").unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(found, Ok(70));
    assert!(absent.contains("scenario.toml: arrivals.rate.file: trace: ") && absent.contains("none.jsonl"), "{absent}");
    let refused = Scenario::from_toml(&text("some.jsonl")).unwrap_err().to_string();
    assert_eq!(refused, "arrivals.rate.file: a trace is only found from a scenario that is a file itself");
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (any::<f64>(), any::<u64>(), any::<Option<u32>>()).prop_map(|(at, prompt, reply)| {
            format!("{{\"at_ms\":{at},\"prompt_tokens\":{prompt},\"reply_tokens\":{}}}", serde_json::json!(reply))
        }),
        4 => "2023-1[0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{0,12})?,[0-9]{1,9},[0-9]{1,9}",
        1 => Just("TIMESTAMP,ContextTokens,GeneratedTokens".to_owned()),
        2 => ".{0,60}",
    ]
}

proptest! {
    /// R119: a trace is read, or refused with one of its lines.
    #[test]
    fn r119_traces_of_any_bytes_are_read_or_refused(
        lines in prop::collection::vec(line(), 0..20),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = lines.join("\n").into_bytes();
        for (place, byte) in noise {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        match Trace::read(&bytes[..]) {
            Ok(trace) => {
                let records = trace.records();
                prop_assert!(!records.is_empty() && records.len() <= lines.len() + 4);
                prop_assert_eq!(records[0].at_ms, 0.0);
                prop_assert!(records.is_sorted_by(|a, b| a.at_ms <= b.at_ms && a.at() <= b.at()));
            }
            Err(error) => prop_assert!((1..=lines.len() + 6).contains(&error.line()), "{error}"),
        }
    }
}
