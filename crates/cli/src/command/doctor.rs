//! `kvm-clone doctor`: is a host fit for a clone?

use std::collections::BTreeMap;
use std::process::ExitCode;

use kvm_clone_core::{Code, Result};
use kvm_clone_engine::{Finding, Verdict};

use super::ask_each;
use crate::args::DoctorArgs;
use crate::exit;
use crate::render::{Output, harmless};
use crate::session::Session;

/// Examines hosts, all at once.
pub(crate) async fn run(args: &DoctorArgs, session: &Session) -> Result<ExitCode> {
    let answers = ask_each(session, &args.hosts, |client, spec| async move { client.doctor(&spec).await }).await?;
    let findings: Vec<(String, Vec<Finding>)> = answers.into_iter().map(|(host, found)| (host.name, found)).collect();
    let failed = findings.iter().flat_map(|(_, found)| found).any(|finding| finding.verdict == Verdict::Fail);
    let by_host: BTreeMap<&String, &Vec<Finding>> = findings.iter().map(|(host, found)| (host, found)).collect();
    let output = &session.output;
    output.data(&by_host, || findings.iter().map(|(host, found)| text(host, found, output)).collect())?;
    Ok(if failed { exit::status(Code::Connection) } else { ExitCode::SUCCESS })
}

fn text(host: &str, findings: &[Finding], output: &Output) -> String {
    let mut text = output.paint.strong(host) + "\n";
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => output.paint.good("ok  "),
            Verdict::Warn => output.paint.warn("warn"),
            Verdict::Fail => output.paint.bad("FAIL"),
        };
        text += &format!("  {verdict}  {:<10}  {}\n", finding.name, harmless(&finding.message));
        for mend in &finding.mend {
            text += &format!("                    mend: {}\n", harmless(mend));
        }
    }
    text
}
