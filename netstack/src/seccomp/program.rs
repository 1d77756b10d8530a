//! Seccomp filters as classic BPF (`seccomp(2)`, Linux 3.5): from what is decided about each system
//! call of each architecture to one program.
//!
//! The program first finds the architecture, then the call's number by binary search over ranges
//! of numbers that are treated alike, then looks at arguments where a rule asks for it. The kernel
//! runs it once per call number when the filter is installed, and remembers the calls that are
//! allowed whatever their arguments (Linux 5.11): these cost nothing afterwards.

use std::collections::BTreeMap;
use std::io;

use libc::sock_filter as Instruction;

use super::action::Action;
use crate::sys;

/// What is decided about the calls of one architecture.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// `AUDIT_ARCH_…` of `linux/audit.h`.
    pub audit: u32,
    /// By call number. The first rule whose conditions hold decides; without one it is the default
    /// action.
    pub calls: BTreeMap<u32, Vec<Rule>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold; none are needed for a rule that always decides.
    pub conditions: Vec<Condition>,
    pub action: Action,
}

/// A comparison of one argument, as an unsigned number of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub comparison: Comparison,
    pub value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument's bits of `mask` are those of the value.
    MaskedEqual {
        mask: u64,
    },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the profile makes a filter of {0} instructions; the kernel takes {MAX_INSTRUCTIONS}")]
pub struct TooLong(usize);

/// `BPF_MAXINSNS` of `linux/bpf_common.h`.
const MAX_INSTRUCTIONS: usize = 4096;

/// The filter for `architectures`. Calls of another architecture kill the process: their numbers
/// mean something else.
pub fn compile(architectures: &[Architecture], default: Action) -> Result<Program, TooLong> {
    let mut program = vec![load(ARCHITECTURE_OFFSET)];
    for architecture in architectures {
        let body = search(&ranges(&architecture.calls, default), default);
        program.push(jump(libc::BPF_JEQ, architecture.audit, 1, 0));
        program.push(skip(1 + body.len()));
        program.push(load(NUMBER_OFFSET));
        program.extend(body);
    }
    program.push(end(Action::KillProcess));
    match program.len() {
        0..=MAX_INSTRUCTIONS => Ok(Program(program)),
        length => Err(TooLong(length)),
    }
}

/// A filter that the kernel can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

impl Program {
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// Installs the filter for the calling thread and all that comes from it, for good, with the
    /// flags `SECCOMP_FILTER_FLAG_…` of `seccomp(2)`.
    ///
    /// # Errors
    /// EACCES without both `no_new_privs` and CAP_SYS_ADMIN in the caller's user namespace.
    pub fn install(&self, flags: u64) -> io::Result<()> {
        sys::install_seccomp_filter(&self.0, flags)
    }
}

/// `struct seccomp_data` of `linux/seccomp.h`.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// The first number of each range, and the rules for all of it.
type Range<'a> = (u32, &'a [Rule]);

/// Every number from 0 on belongs to one range. Neighbours that are treated alike share one.
fn ranges(calls: &BTreeMap<u32, Vec<Rule>>, default: Action) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut begin = |number, rules| {
        if ranges.last().is_none_or(|(_, last)| *last != rules) {
            ranges.push((number, rules));
        }
    };
    let mut next = 0;
    for (&number, rules) in calls {
        if number > next {
            begin(next, &[]);
        }
        // What always does the default is no rule.
        let rules = match rules.first() {
            Some(rule) if rule.conditions.is_empty() && rule.action == default => &[],
            _ => rules.as_slice(),
        };
        begin(number, rules);
        next = number + 1;
    }
    begin(next, &[]);
    ranges
}

/// Finds the range of the number that was loaded, and decides.
fn search(ranges: &[Range], default: Action) -> Vec<Instruction> {
    if let [(_, rules)] = ranges {
        return decide(rules, default);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (first_of_upper, _) = upper[0];
    let (lower, upper) = (search(lower, default), search(upper, default));
    let mut code = match u8::try_from(lower.len()) {
        Ok(length) => vec![jump(libc::BPF_JGE, first_of_upper, length, 0)],
        Err(_) => vec![jump(libc::BPF_JGE, first_of_upper, 0, 1), skip(lower.len())],
    };
    code.extend(lower);
    code.extend(upper);
    code
}

fn decide(rules: &[Rule], default: Action) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in rules {
        // From the back, so that each condition knows how far it is to the next rule.
        let mut rest = vec![end(rule.action)];
        for condition in rule.conditions.iter().rev() {
            let mut test = condition.test(rest.len());
            test.append(&mut rest);
            rest = test;
        }
        code.extend(rest);
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(end(default));
    code
}

impl Rule {
    /// Whether the rule decides about a call with these arguments. Programs are tested against it.
    pub fn applies(&self, arguments: &[u64; 6]) -> bool {
        self.conditions.iter().all(|one| one.holds(arguments))
    }
}

impl Condition {
    fn holds(&self, arguments: &[u64; 6]) -> bool {
        let argument = arguments[usize::from(self.argument)];
        match self.comparison {
            Comparison::Equal => argument == self.value,
            Comparison::NotEqual => argument != self.value,
            Comparison::Less => argument < self.value,
            Comparison::LessOrEqual => argument <= self.value,
            Comparison::Greater => argument > self.value,
            Comparison::GreaterOrEqual => argument >= self.value,
            Comparison::MaskedEqual { mask } => argument & mask == self.value & mask,
        }
    }

    /// Goes on behind itself if it holds, else `rest` instructions further. BPF has words of 32
    /// bits: the high one decides unless it is equal.
    fn test(self, rest: usize) -> Vec<Instruction> {
        let (low, high) = halves(self.value);
        // Both architectures that are known here are little-endian.
        let offset = ARGUMENTS_OFFSET + 8 * u32::from(self.argument);
        let (load_low, load_high) = (load(offset), load(offset + 4));
        // At most six conditions of seven instructions each.
        let rest = u8::try_from(rest).expect("a rule is shorter than a short jump");
        use libc::{BPF_JEQ, BPF_JGE, BPF_JGT};
        match self.comparison {
            Comparison::Equal => vec![
                load_high,
                jump(BPF_JEQ, high, 0, rest + 2),
                load_low,
                jump(BPF_JEQ, low, 0, rest),
            ],
            Comparison::NotEqual => vec![
                load_high,
                jump(BPF_JEQ, high, 0, 2),
                load_low,
                jump(BPF_JEQ, low, rest, 0),
            ],
            Comparison::MaskedEqual { mask } => {
                let (mask_low, mask_high) = halves(mask);
                vec![
                    load_high,
                    and(mask_high),
                    jump(BPF_JEQ, high & mask_high, 0, rest + 3),
                    load_low,
                    and(mask_low),
                    jump(BPF_JEQ, low & mask_low, 0, rest),
                ]
            }
            Comparison::Greater => at_least(BPF_JGT, load_high, load_low, high, low, (0, rest)),
            Comparison::GreaterOrEqual => {
                at_least(BPF_JGE, load_high, load_low, high, low, (0, rest))
            }
            Comparison::Less => at_least(BPF_JGE, load_high, load_low, high, low, (rest, 0)),
            Comparison::LessOrEqual => at_least(BPF_JGT, load_high, load_low, high, low, (rest, 0)),
        }
    }
}

/// Whether the argument is greater than the value, or with `BPF_JGE` at least the value.
/// `(yes, no)` say how far to jump from the end then.
fn at_least(
    low_test: u32,
    load_high: Instruction,
    load_low: Instruction,
    high: u32,
    low: u32,
    (yes, no): (u8, u8),
) -> Vec<Instruction> {
    vec![
        load_high,
        jump(libc::BPF_JGT, high, yes + 3, 0),
        jump(libc::BPF_JEQ, high, 0, no + 2),
        load_low,
        jump(low_test, low, yes, no),
    ]
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

fn load(offset: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn and(mask: u32) -> Instruction {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0)
}

/// Compares what was loaded with `value`.
fn jump(test: u32, value: u32, yes: u8, no: u8) -> Instruction {
    instruction(libc::BPF_JMP | test | libc::BPF_K, value, yes, no)
}

fn skip(instructions: usize) -> Instruction {
    // Beyond what the kernel takes the program is refused as a whole.
    instruction(libc::BPF_JMP | libc::BPF_JA, instructions as u32, 0, 0)
}

fn end(action: Action) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, action.to_kernel(), 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
