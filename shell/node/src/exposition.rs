//! Prometheus' text format, written by hand: it is small, and a writer that refuses what `promtool check metrics` would
//! complain about is smaller than a library.
//!
//! Families come one after the other, each once, with HELP and TYPE. It knows nothing of what is measured.

use std::fmt::{Display, Write};
use std::time::Duration;

/// The content type of the format.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
    /// Names used so far: a family must not come twice.
    families: Vec<&'static str>,
}

/// Samples of one family, told apart by labels.
pub(crate) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Exposition {
    pub(crate) fn gauge(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.gauges(name, help).sample(&[], value);
    }

    pub(crate) fn gauges(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    pub(crate) fn counter(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.counters(name, help).sample(&[], value);
    }

    pub(crate) fn counters(&mut self, name: &'static str, help: &str) -> Family<'_> {
        assert!(name.ends_with("_total"), "{name}: a counter's name ends with _total");
        self.family(name, help, "counter")
    }

    pub(crate) fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        histogram: &crate::metrics::Histogram,
    ) {
        let family = self.family(name, help, "histogram");
        let (buckets, sum) = histogram.read();
        let mut below = 0;
        for (bound, count) in buckets {
            below += count;
            let bound = bound.map_or("+Inf".into(), |bound| bound.to_string());
            let _ = writeln!(family.text, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let _ = write!(family.text, "{name}_sum {sum}\n{name}_count {below}\n");
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        assert!(!self.families.contains(&name), "{name} was written before");
        self.families.push(name);
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { text: &mut self.text, name }
    }
}

impl Family<'_> {
    pub(crate) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.name);
        for (index, (label, content)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let content = content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{open}{label}=\"{content}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

/// Seconds, the base unit.
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_carry_escaped_labels() {
        let mut exposition = Exposition::default();
        exposition.counters("a_total", "What.").sample(&[("x", "q\"\\\n"), ("y", "2")], 7);
        exposition.gauge("b", "Which.", 1.5);
        assert_eq!(
            exposition.finish(),
            "# HELP a_total What.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\",y=\"2\"} 7\n\
             # HELP b Which.\n# TYPE b gauge\nb 1.5\n"
        );
    }
}
