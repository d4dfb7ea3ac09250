//! A service from its start to its end, with a store.

use std::{
    ffi::OsString,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc::channel},
    thread,
    time::Duration,
};

use anyhow::Context;
use rustix::{
    io::Errno,
    process::{Pid, Resource, WaitOptions, getpid, getrlimit, set_child_subreaper, wait},
};

use crate::{
    arrival::raise_open_files,
    spawn::{NotRunning, Seats, exit_code_of, spawn},
    stage,
};

use super::{
    heard::{Ear, Main},
    manager::Manager,
    passed::Passed,
    socket::{self, Socket},
    store::Store,
    variables::{self, Inherited},
};

/// How long what the service has said last may take after its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the service, does what it wishes until it ends, and tells how it has.
pub(super) fn serve(words: &[OsString], passed: Passed, store: Store) -> anyhow::Result<ExitCode> {
    let (socket, place) = socket::bind()?;
    // What the service leaves behind becomes our child, and so is known to be of it.
    set_child_subreaper(Some(getpid())).context("could not become a reaper of orphans")?;
    let inherited = Inherited::from_env();
    // What waits for the daemon takes more than the usual 1024, and is lost where there is no room.
    let files = getrlimit(Resource::Nofile).current;
    raise_open_files();
    let mut command = stage::command(words, files);
    variables::set(&mut command, &inherited, &passed.names);
    command.env("NOTIFY_SOCKET", place.path()).env("FDSTORE", store.most().to_string());
    let running = match spawn(command, passed.fds, Seats::From(inherited.next())) {
        Ok(running) => running,
        Err(NotRunning::NotExecuted(code)) => return Ok(code),
        Err(NotRunning::Failed(error)) => return Err(error),
    };

    let main = Arc::new(Mutex::new(Main::new(running.pid())));
    let signalled = Arc::clone(&main);
    running.watched_by(move |signal| now(&signalled).process.signal(signal));
    let ear = listen(socket, &main, store);
    let code = until_the_end(&main, &ear);
    if !settled(&ear) {
        crate::complain(format_args!("what the service has stored last is not in the stash"));
    }
    drop(place);
    code
}

fn now(main: &Mutex<Main>) -> std::sync::MutexGuard<'_, Main> {
    main.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears what the service says, on a thread of its own.
fn listen(socket: Socket, main: &Arc<Mutex<Main>>, store: Store) -> Arc<Mutex<Ear>> {
    let socket = Arc::new(socket);
    let ear = Ear::new(Arc::clone(&socket), Manager::from_env(), Arc::clone(main), store);
    let ear = Arc::new(Mutex::new(ear));
    let shared = Arc::clone(&ear);
    thread::spawn(move || {
        loop {
            let heard = socket.wait().and_then(|()| lock(&shared).drain());
            if let Err(error) = heard {
                crate::complain(format_args!("the service is not heard any more: {error}"));
                return;
            }
        }
    });
    ear
}

fn lock(ear: &Mutex<Ear>) -> std::sync::MutexGuard<'_, Ear> {
    ear.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the process that is the service, and for whatever it leaves to us meanwhile.
fn until_the_end(main: &Mutex<Main>, ear: &Arc<Mutex<Ear>>) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::from(crate::REFUSED);
    loop {
        let (ended, status) = match wait(WaitOptions::empty()) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::INTR) => continue,
            // The service had another main process, for which somebody else has waited.
            Err(Errno::CHILD) => return Ok(code),
            Err(error) => return Err(error).context("could not wait for the command"),
        };
        if !is_main(ended, main) {
            continue;
        }
        code = exit_code_of(status.exit_status(), status.terminating_signal());
        // It may have said which process is the service now, and ended.
        settled(ear);
        if is_main(ended, main) {
            return Ok(code);
        }
    }
}

fn is_main(pid: Pid, main: &Mutex<Main>) -> bool {
    now(main).pid == pid
}

/// Hears all that the service has said, and waits until it is done; whether it is.
fn settled(ear: &Arc<Mutex<Ear>>) -> bool {
    let (tell, told) = channel();
    let ear = Arc::clone(ear);
    // On a thread of its own, since what is heard may have to wait for the daemon.
    thread::spawn(move || {
        let mut ear = lock(&ear);
        if let Err(error) = ear.drain() {
            crate::complain(format_args!("the service's last words are not heard: {error}"));
        }
        ear.tell_when_done(tell);
    });
    told.recv_timeout(PATIENCE).is_ok()
}
