//! Message bodies: small ones in memory and in their table, large ones in a file that is written while they arrive.

/// Where a message's original bytes are.
#[derive(Clone, Debug)]
pub struct StoredBody;

impl StoredBody {
    #[must_use]
    pub fn len(&self) -> u64 {
        todo!()
    }
}
