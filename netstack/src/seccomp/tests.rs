//! Programs against their rules, by a small machine that runs them as the kernel does.

use proptest::prelude::*;

use super::*;

/// One system call, as a filter sees it.
#[derive(Debug, Clone, Copy)]
struct Call {
    audit: u32,
    number: u32,
    arguments: [u64; 6],
}

/// Runs a filter, as `seccomp(2)` and the kernel's Documentation/networking/filter.rst say.
fn run(program: &Program, call: Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.audit,
        _ => {
            let offset = offset - 16;
            let argument = call.arguments[(offset / 8) as usize];
            (argument >> (8 * (offset % 8))) as u32
        }
    };
    let code = program.instructions();
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let instruction = &code[at];
        let k = instruction.k;
        at += 1;
        let operation = u32::from(instruction.code);
        let holds = match operation {
            // BPF_LD | BPF_W | BPF_ABS
            0x20 => {
                accumulator = word(k);
                continue;
            }
            // BPF_ALU | BPF_AND | BPF_K
            0x54 => {
                accumulator &= k;
                continue;
            }
            // BPF_JMP | BPF_JA
            0x05 => {
                at += k as usize;
                continue;
            }
            // BPF_RET | BPF_K
            0x06 => return k,
            // BPF_JMP | BPF_JEQ, BPF_JGT, BPF_JGE, with BPF_K
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if holds {
            instruction.jt
        } else {
            instruction.jf
        });
    }
}

/// What the rules say, read one by one.
fn expected(architectures: &[Architecture], default: Action, call: Call) -> Action {
    let Some(architecture) = architectures.iter().find(|one| one.audit == call.audit) else {
        return Action::KillProcess;
    };
    let rules = architecture.calls.get(&call.number);
    rules
        .into_iter()
        .flatten()
        .find(|rule| rule.applies(&call.arguments))
        .map_or(default, |rule| rule.action)
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        (0u16..4096).prop_map(Action::Errno),
        Just(Action::Trap),
        Just(Action::KillThread),
        Just(Action::KillProcess),
    ]
}

/// Few different numbers, in both halves of a word, so that equal ones meet.
fn any_value() -> impl Strategy<Value = u64> {
    let half = prop_oneof![0u64..4, Just(0xffff_ffff), Just(0x8000_0000)];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterOrEqual),
        any_value().prop_map(|mask| Comparison::MaskedEqual { mask }),
    ];
    (0u8..6, comparison, any_value()).prop_map(|(argument, comparison, value)| Condition {
        argument,
        comparison,
        value,
    })
}

fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (prop::collection::vec(any_condition(), 0..6), any_action())
        .prop_map(|(conditions, action)| Rule { conditions, action });
    prop::collection::vec(rule, 1..4)
}

proptest! {
    #[test]
    fn a_program_decides_as_its_rules_do(
        calls in prop::collection::vec(prop::collection::btree_map(0u32..600, any_rules(), 0..60), 1..3),
        default in any_action(),
        tried in prop::collection::vec((0u32..4, 0u32..700, prop::array::uniform6(any_value())), 200),
    ) {
        let architectures: Vec<Architecture> = (1..)
            .zip(calls)
            .map(|(audit, calls)| Architecture { audit, calls })
            .collect();
        let Ok(program) = compile(&architectures, default) else {
            return Ok(());
        };
        for (audit, number, arguments) in tried {
            let call = Call { audit, number, arguments };
            prop_assert_eq!(run(&program, call), expected(&architectures, default, call).to_kernel());
        }
    }
}
