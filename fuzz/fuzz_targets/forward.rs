//! The grammar of pasta's port options: whatever is understood makes rules that go together or are
//! refused with a reason, and a refusal has something to say.
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 cargo fuzz run forward -- -max_total_time=60
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use portfwd::PortRange;
use portfwd::forward::PortOption;
use portfwd::forward::wire::{Tables, read_update, update};

fuzz_target!(|text: &str| {
    let mut tables = Tables::default();
    for (option, spec) in PortOption::ALL.into_iter().cycle().zip(text.split('\n')) {
        let table = tables.of_mut(option.direction());
        if let Err(error) = option.add(spec, PortRange::EPHEMERAL, table) {
            assert!(!error.to_string().is_empty());
        }
        for rule in table.rules() {
            assert!(rule.pairs().all(|(port, target)| port != 0 && target != 0));
            assert_eq!(rule.pairs().count(), rule.ports.len());
        }
    }
    assert_eq!(read_update(&update(&tables)), Ok(Some(tables)));
});
