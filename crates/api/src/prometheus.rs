//! Metrics in the text format 0.0.4, under the names that dashboards of old read. Written by hand because those names
//! (`…_total` gauges, `_max` next to `_sum`) are ones that the client libraries refuse or rename.

use stacyvm_types::Metrics;
use std::{fmt::Write, time::Duration};

/// `Content-Type` of the text.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics as text.
pub(crate) fn text(metrics: &Metrics, uptime: Duration) -> String {
    let mut out = Exposition::default();
    out.family("stacyvm_uptime_seconds", "gauge", "Seconds since the server started.");
    out.sample("stacyvm_uptime_seconds", &[], uptime.as_secs_f64());
    runtime(&mut out, metrics);
    sandboxes(&mut out, metrics);
    providers(&mut out, metrics);
    out.family("stacyvm_events_total", "counter", "Events since the installation was made.");
    out.sample("stacyvm_events_total", &[], metrics.events.events_total as f64);
    out.family("stacyvm_event_subscribers", "gauge", "Subscribers of the event stream.");
    out.sample("stacyvm_event_subscribers", &[], metrics.events.subscribers as f64);
    out.family("stacyvm_owner_quotas_total", "gauge", "Owners with a quota of their own.");
    out.sample("stacyvm_owner_quotas_total", &[], metrics.quotas.total as f64);
    operations(&mut out, metrics);
    out.text
}

fn runtime(out: &mut Exposition, metrics: &Metrics) {
    for (name, kind, help, value) in [
        ("stacyvm_runtime_goroutines", "gauge", "Tasks alive in the async runtime.", metrics.goroutines),
        (
            "stacyvm_runtime_memory_alloc_bytes",
            "gauge",
            "Resident memory without file pages.",
            metrics.memory_alloc,
        ),
        ("stacyvm_runtime_memory_sys_bytes", "gauge", "Resident memory.", metrics.memory_sys),
        (
            "stacyvm_runtime_gc_cycles_total",
            "counter",
            "Always 0: nothing is garbage collected.",
            metrics.gc_cycles,
        ),
    ] {
        out.family(name, kind, help);
        out.sample(name, &[], value as f64);
    }
}

fn sandboxes(out: &mut Exposition, metrics: &Metrics) {
    let counts = &metrics.sandboxes;
    for (name, help, label, values) in [
        ("stacyvm_sandboxes_total", "Sandboxes by state.", "state", &counts.by_state),
        ("stacyvm_sandboxes_by_provider_total", "Sandboxes by provider.", "provider", &counts.by_provider),
        ("stacyvm_sandboxes_by_worker_total", "Sandboxes by machine.", "worker", &counts.by_worker),
    ] {
        out.family(name, "gauge", help);
        for (value, count) in values {
            out.sample(name, &[(label, value)], *count as f64);
        }
    }
}

fn providers(out: &mut Exposition, metrics: &Metrics) {
    let items = &metrics.providers.items;
    out.family("stacyvm_provider_healthy", "gauge", "1 if a sandbox could be created.");
    for item in items {
        let default = if item.default { "true" } else { "false" };
        out.sample(
            "stacyvm_provider_healthy",
            &[("provider", &item.name), ("default", default)],
            f64::from(u8::from(item.healthy)),
        );
    }
    out.family("stacyvm_provider_health_latency_milliseconds", "gauge", "Duration of the last health check.");
    for item in items {
        let labels = [("provider", item.name.as_str())];
        out.sample("stacyvm_provider_health_latency_milliseconds", &labels, item.latency_ms as f64);
    }
    out.family("stacyvm_provider_runtime_sandboxes", "gauge", "Sandboxes that the runtime holds.");
    for item in items {
        if let Some(count) = item.runtime_count {
            out.sample("stacyvm_provider_runtime_sandboxes", &[("provider", &item.name)], count as f64);
        }
    }
}

fn operations(out: &mut Exposition, metrics: &Metrics) {
    let labels = |i: usize| {
        let counts = &metrics.operations[i];
        [("operation", counts.operation.as_str()), ("provider", counts.provider.as_str())]
    };
    let all = || metrics.operations.iter().enumerate();
    out.family("stacyvm_operation_success_total", "counter", "Operations that worked.");
    all()
        .for_each(|(i, o)| out.sample("stacyvm_operation_success_total", &labels(i), o.success_total as f64));
    out.family("stacyvm_operation_failure_total", "counter", "Operations that failed.");
    all()
        .for_each(|(i, o)| out.sample("stacyvm_operation_failure_total", &labels(i), o.failure_total as f64));
    let name = "stacyvm_operation_latency_milliseconds";
    out.family(name, "summary", "Duration of operations.");
    for (i, o) in all() {
        out.sample(&format!("{name}_sum"), &labels(i), o.latency_total_ms);
        out.sample(&format!("{name}_count"), &labels(i), o.latency_count as f64);
    }
    out.family(&format!("{name}_max"), "gauge", "Longest duration of an operation.");
    all().for_each(|(i, o)| out.sample(&format!("{name}_max"), &labels(i), o.latency_max_ms));
}

/// Text in the making.
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.text.push(if i == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"{}\"", escape(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_types::{EventCounts, OperationCounts, ProviderCounts, QuotaSummary, SandboxCounts};
    use std::collections::{BTreeMap, BTreeSet};

    fn metrics() -> Metrics {
        let operation = OperationCounts {
            operation: "spawn".into(),
            provider: "a\"b\\\n".into(),
            success_total: 2,
            latency_total_ms: 1.5,
            ..OperationCounts::default()
        };
        Metrics {
            uptime: "1s".into(),
            goroutines: 3,
            memory_alloc: 1,
            memory_sys: 2,
            memory_heap_alloc: 3,
            gc_cycles: 0,
            sandboxes: SandboxCounts {
                by_state: BTreeMap::from([("running".into(), 2)]),
                ..SandboxCounts::default()
            },
            providers: ProviderCounts::default(),
            events: EventCounts::default(),
            operations: vec![operation],
            quotas: QuotaSummary::default(),
        }
    }

    #[test]
    fn every_sample_follows_its_type_and_no_family_comes_twice() {
        let text = text(&metrics(), Duration::from_millis(1500));
        assert!(text.contains("\nstacyvm_uptime_seconds 1.5\n"), "{text}");
        assert!(text.contains("\nstacyvm_sandboxes_total{state=\"running\"} 2\n"), "{text}");
        let (mut families, mut current) = (BTreeSet::new(), String::new());
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                current = family.split(' ').next().unwrap().to_owned();
                assert!(families.insert(current.clone()), "{current} twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&current), "{line} outside of {current}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape("a\"b\\\n"), "a\\\"b\\\\\\n");
        assert!(text(&metrics(), Duration::ZERO).contains(r#"provider="a\"b\\\n""#));
    }
}
