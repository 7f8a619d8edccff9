//! Operations as documents and as text.

use kvm_clone_core::journal::Status;
use kvm_clone_core::progress::Progress;
use kvm_clone_core::size::ByteSize;
use kvm_clone_engine::{Operation, OperationType, Outcome};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::document::ErrorView;
use super::paint::Paint;
use super::{error, harmless, table};

/// An operation as `status` writes it; the names are a contract.
#[derive(Debug, Serialize)]
pub(crate) struct OperationView<'a> {
    operation_id: Uuid,
    operation_type: OperationType,
    status: Status,
    vm_name: &'a str,
    new_vm_name: &'a str,
    source_host: &'a str,
    dest_host: &'a str,
    progress: &'a Progress,
    created: &'a str,
    started: Option<&'a str>,
    completed: Option<&'a str>,
    result: Option<ResultView<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ResultView<'a> {
    Done(&'a Value),
    Failed(Box<ErrorView>),
    Recovered { recovered: bool },
}

impl<'a> OperationView<'a> {
    /// This operation.
    pub(crate) fn of(operation: &'a Operation) -> Self {
        let result = match &operation.outcome {
            Outcome::None => None,
            Outcome::Result(result) => Some(ResultView::Done(result)),
            Outcome::Failure(error) => {
                let error = error.clone().with("operation_id", operation.id);
                let view = ErrorView::at(&error, operation.completed.as_deref().unwrap_or_default());
                Some(ResultView::Failed(Box::new(view)))
            }
            Outcome::Recovered => Some(ResultView::Recovered { recovered: true }),
        };
        Self {
            operation_id: operation.id,
            operation_type: operation.kind,
            status: operation.status,
            vm_name: &operation.vm_name,
            new_vm_name: &operation.new_vm_name,
            source_host: &operation.source_host,
            dest_host: &operation.dest_host,
            progress: &operation.progress,
            created: &operation.created,
            started: operation.started.as_deref(),
            completed: operation.completed.as_deref(),
            result,
        }
    }
}

/// A line for each.
pub(crate) fn operations_table(all: &[Operation], paint: Paint) -> String {
    let header = ["ID", "TYPE", "STATUS", "MACHINE", "CREATED", "PROGRESS"].map(str::to_owned).to_vec();
    let row = |operation: &Operation| {
        vec![
            operation.id.to_string(),
            operation.kind.word().to_owned(),
            operation.status.word().to_owned(),
            machines(operation),
            seconds(&operation.created),
            if operation.status.is_final() { "-".to_owned() } else { harmless(&operation.progress.message) },
        ]
    };
    table::plain(header, all.iter().map(row), paint)
}

/// All of one in a line.
pub(crate) fn operation_line(operation: &Operation) -> String {
    let (id, kind, status) = (operation.id, operation.kind.word(), operation.status.word());
    let message = harmless(&operation.progress.message);
    let more = if message.starts_with(status) { message } else { format!("{status}, {message}") };
    format!("{kind} {id}: {}: {more}\n", machines(operation))
}

/// All that is known of one.
pub(crate) fn operation_text(operation: &Operation, paint: Paint) -> String {
    let kind = operation.kind.word();
    let status = operation.status.word();
    let status = match operation.status {
        Status::Completed => paint.good(status),
        Status::Failed | Status::Interrupted => paint.bad(status),
        Status::Cancelled => paint.warn(status),
        Status::Pending | Status::Running => status.to_owned(),
    };
    let mut text = format!("{} {status}\n", paint.strong(&format!("{kind} {}:", operation.id)));
    let mut line = |name: &str, value: &str| text += &format!("  {name:<10} {}\n", harmless(value));
    line("source", &format!("{} on {}", operation.vm_name, operation.source_host));
    line("target", &format!("{} on {}", operation.new_vm_name, operation.dest_host));
    // What went wrong is told below, whole.
    if !matches!(operation.outcome, Outcome::Failure(_)) {
        line("progress", &operation.progress.message);
    }
    line("created", &seconds(&operation.created));
    operation.started.iter().for_each(|time| line("started", &seconds(time)));
    operation.completed.iter().for_each(|time| line("completed", &seconds(time)));
    if let Outcome::Result(result) = &operation.outcome {
        result_lines(result, &mut line);
    }
    match operation.failure() {
        Some(failure) => text + &error::text(&failure, paint) + "\n",
        None => text,
    }
}

/// What a result says, as far as a reader wants it; all of it is in the document.
fn result_lines(result: &Value, line: &mut impl FnMut(&str, &str)) {
    let bytes = |name: &str| ByteSize(result[name].as_u64().unwrap_or_default());
    if let (Some(way), Some(why)) = (result["way"].as_str(), result["why"].as_str()) {
        line("way", &format!("{way}: {why}"));
    }
    let (read, sent, written) = (bytes("bytes_read"), bytes("bytes_transferred"), bytes("bytes_written"));
    line("bytes", &format!("{read} read, {sent} sent, {written} written"));
    if let Some(duration) = result["duration"].as_f64() {
        line("time", &format!("{duration:.1} s"));
    }
    let warnings = result["warnings"].as_array().into_iter().flatten();
    warnings.filter_map(Value::as_str).for_each(|warning| line("warning", warning));
}

fn machines(operation: &Operation) -> String {
    let Operation { vm_name, source_host, new_vm_name, dest_host, .. } = operation;
    harmless(&format!("{vm_name} on {source_host} -> {new_vm_name} on {dest_host}"))
}

/// A time without its fraction of a second.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kvm_clone_core::Error;
    use kvm_clone_core::event::Phase;

    use super::*;

    fn operation(status: Status, outcome: Outcome) -> Operation {
        let text = |text: &str| text.to_owned();
        Operation {
            id: "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b".parse().unwrap(),
            kind: OperationType::Clone,
            status,
            source_host: text("alpha"),
            dest_host: text("beta"),
            vm_name: text("web1"),
            new_vm_name: text("web1_clone"),
            progress: Progress {
                progress_percent: 25.5,
                bytes_transferred: 255 << 20,
                total_bytes: 1000 << 20,
                speed: Some(51 << 20),
                eta: Some(14),
                phase: Some(Phase::Copy),
                message: text("copy: 25 %, 255.0 MiB of 1000.0 MiB, 51.0 MiB/s, 0:14 left"),
            },
            created: text("2030-01-02T03:04:05.123456789Z"),
            started: Some(text("2030-01-02T03:04:06Z")),
            completed: status.is_final().then(|| text("2030-01-02T03:04:09.5Z")),
            outcome,
        }
    }

    fn at(operation: Operation, message: &str) -> Operation {
        let progress = Progress { message: message.to_owned(), ..Progress::default() };
        Operation { progress, ..operation }
    }

    fn each() -> Vec<Operation> {
        let error = Error::transfer("lane agent 3 died").with("host", "beta").help("Run the command again").transient();
        let result = serde_json::json!({
            "way": "full", "why": "the machine is new at the target", "bytes_read": 1 << 20, "bytes_transferred": 1 << 21,
            "bytes_written": 1 << 20, "duration": 3.25, "warnings": ["the CD-ROM is empty"]
        });
        vec![
            operation(Status::Running, Outcome::None),
            at(operation(Status::Interrupted, Outcome::None), "its controller is gone; it was at copy: 25 %"),
            at(operation(Status::Completed, Outcome::Result(result)), "completed"),
            at(operation(Status::Failed, Outcome::Failure(error)), "failed: lane agent 3 died"),
            at(operation(Status::Failed, Outcome::Recovered), "its controller was gone; recover undid it"),
        ]
    }

    #[test]
    fn operations_are_shown_as_a_table_a_line_and_a_text() {
        let paint = Paint { on: false };
        insta::assert_snapshot!("operations_table", operations_table(&each(), paint));
        insta::assert_snapshot!("operation_line", each().iter().map(operation_line).collect::<String>());
        let texts: Vec<String> = each().iter().map(|operation| operation_text(operation, paint)).collect();
        insta::assert_snapshot!("operation_text", texts.join("\n"));
    }

    #[test]
    fn operations_are_written_as_promised() {
        let each = each();
        let views: Vec<OperationView> = each.iter().map(OperationView::of).collect();
        insta::assert_json_snapshot!("operation_document", views);
    }
}
