//! An operation between two tries: others see it still, may stop it, and keep their hands off what it has staged.

use std::sync::Arc;

use kvm_clone_core::Result;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::attendance::Attendance;
use crate::client::Client;
use crate::store::Store;

/// An operation that waits for its next try. Dropping it ends that, without waiting.
pub struct Waiting {
    attendance: Attendance,
    /// Passes the word on; ends with this.
    _telling: JoinSet<()>,
}

impl Waiting {
    /// Begins, after a try failed. Who asks the operation to stop cancels `stop`.
    ///
    /// # Errors
    /// Its presence cannot be held, or the journal cannot be read.
    pub async fn begin(client: &Client, operation: Uuid, stop: &CancellationToken) -> Result<Self> {
        let store = Store::open(&client.journal).await?;
        let attendance = Attendance::begin(&store, operation, Arc::new(|_| {}), stop).await;
        store.close().await;
        let attendance = attendance?;
        let (asked, stop) = (attendance.cancel.clone(), stop.clone());
        let mut telling = JoinSet::new();
        telling.spawn(async move {
            asked.cancelled().await;
            stop.cancel();
        });
        Ok(Self { attendance, _telling: telling })
    }

    /// Ends, before the next try, or after what was staged is undone; waits until nothing is left.
    pub async fn end(self) {
        self.attendance.end().await;
    }
}
