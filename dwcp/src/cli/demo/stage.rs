//! What the audience sees while the demo runs: one bar per phase on a terminal, one line per phase elsewhere. On standard
//! error, so that results stay alone on standard output. It measures nothing.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub struct Stage {
    terminal: bool,
    bar: Option<ProgressBar>,
    name: &'static str,
    began: Instant,
    expected: Option<Duration>,
}

impl Stage {
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, bar: None, name: "", began: Instant::now(), expected: None }
    }

    /// A phase begins. `expected`: how long it will take, when that is known.
    pub fn begin(&mut self, name: &'static str, expected: Option<Duration>) {
        (self.name, self.began, self.expected) = (name, Instant::now(), expected);
        if !self.terminal {
            return;
        }
        let template = match expected {
            Some(_) => "{prefix:<14} {bar:24} {msg}",
            None => "{prefix:<14} {spinner:24} {msg}",
        };
        let style =
            ProgressStyle::with_template(template).expect("the template is fixed").progress_chars("=> ");
        let length = expected.map_or(1, |expected| expected.as_millis().try_into().unwrap_or(u64::MAX));
        let bar = ProgressBar::new(length).with_style(style).with_prefix(name);
        bar.enable_steady_tick(Duration::from_millis(100));
        self.bar = Some(bar);
    }

    pub fn tick(&self, message: String) {
        let Some(bar) = &self.bar else { return };
        if self.expected.is_some() {
            bar.set_position(self.began.elapsed().as_millis().try_into().unwrap_or(u64::MAX));
        }
        bar.set_message(message);
    }

    pub fn end(&mut self, message: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        match self.bar.take() {
            Some(bar) => {
                bar.set_style(
                    ProgressStyle::with_template("{prefix:<14} {msg}").expect("the template is fixed"),
                );
                bar.finish_with_message(format!("{seconds:5.1} s  {message}"));
            }
            None => eprintln!("{:<14} {seconds:5.1} s  {message}", self.name),
        }
    }
}

impl Drop for Stage {
    /// An error or Ctrl-C leaves no half-drawn bar behind.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}
