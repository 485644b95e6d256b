"""Running something in a process of its own that kills itself with SIGKILL before or after a step."""

import importlib
import multiprocessing
import os
import signal


def _run(call, args, kwargs, step, environment):
    os.environ.update(environment)  # the process is forked from an older one
    module, name, when = step
    owner = importlib.import_module(module)
    real = getattr(owner, name)

    def deadly(*given, **named):
        if when == "after":
            real(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)
    owner_of_call, _, attribute = call.partition(":")
    getattr(importlib.import_module(owner_of_call), attribute)(*args, **kwargs)


def dies(call, *args, at, **kwargs):
    """Run "module:function" in a process that dies at (module, function, "before" or "after")."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ingest.dying", "ingest.purge", "ingest.compact"])
    given = (call, args, kwargs, at, dict(os.environ))
    process = context.Process(target=_run, args=given)
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL
