//! The marks of packets (`meta mark`, SO_MARK) by which firewall rules, routes and sockets of a
//! promotion know each other.

/// Of diverted segments; also the number of the table that they are routed by. Reads "coracle".
pub const DIVERTED: u32 = 0xC04A_C1E0;

/// Of what a repair socket sends to a connection that the guest only forwards: not to be tracked.
pub const UNTRACKED: u32 = DIVERTED + 1;
