//! Policy routing that turns marked packets to the namespace's own sockets: a rule from firewall mark to a table whose
//! only route is `local default dev lo`, in both families, and the two sysctls without which the kernel drops such
//! packets as forged. Runs on the guest thread, once.

/// The firewall mark, and the number of the rule's table: not one that people or programs choose by themselves.
pub const MARK: u32 = 0xc0_7ac1e;
