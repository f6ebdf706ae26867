//! Evaluates any text deeply and prints the result or the error: neither may crash. A program may well run for ever or ask
//! for more memory than it may have; run with `-fork=1 -ignore_timeouts=1 -ignore_ooms=1 -timeout=10`.
#![no_main]

use bento_eval::{Aborted, Host, RenderOptions, Settings, evaluate};
use libfuzzer_sys::fuzz_target;

struct Silent;

impl Host for Silent {
    fn env(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn warn(&self, _: &str) {}
    fn trace(&self, _: &str) {}
}

fuzz_target!(|text: &[u8]| {
    // Pure, so that no file of the machine is read.
    let settings = Settings { pure: true, max_call_depth: 1000, max_heap: 512 << 20, ..Settings::default() };
    let finished = evaluate(settings, Silent, |evaluator| {
        match evaluator.eval_string(text, b"/nowhere").and_then(|value| evaluator.force_deep(value)) {
            Ok(value) => drop(evaluator.print(value, true)),
            Err(error) => drop(evaluator.render_error(&error, &RenderOptions { color: false, show_trace: true })),
        }
    });
    match finished {
        Ok(()) | Err(Aborted::Memory { .. }) => {}
        Err(error) => panic!("{error}"),
    }
});
