//! The account of connections and mappings that pass this network by: the driver joins their two
//! sockets. They share descriptors and counters with those that do not.

use super::Core;

impl Core {
    /// A connection was joined that has `descriptors` of the open connections' share. Ask
    /// [`Core::admits_any`] before; by as much as a connection needs, the limit may be exceeded.
    pub fn splice_begins(&mut self, descriptors: usize) {
        self.shares.take(descriptors);
    }

    /// It has ended.
    pub fn splice_ends(&mut self, descriptors: usize) {
        self.shares.give_back(descriptors);
    }

    /// A TCP connection of that kind was made.
    pub fn splice_connected(&mut self) {
        self.counters.connections += 1;
    }

    /// So many bytes more have been moved.
    pub fn splice_moved(&mut self, to_guest: u64, from_guest: u64) {
        self.counters.bytes_to_guest += to_guest;
        self.counters.bytes_from_guest += from_guest;
    }
}
