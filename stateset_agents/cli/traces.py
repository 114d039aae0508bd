"""`traces`: read, verify, export, replay and erase recorded traces."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stateset_agents.cli.help import CommandLine
from stateset_agents.cli.sources import open_store

traces = CommandLine(help="Look into recorded traces, prove and move them.")

Place = Annotated[
    str, typer.Argument(help="A run's folder, a store's file, or postgresql://…", metavar="STORE")
]


TraceId = Annotated[str, typer.Argument(help="A trace's id, or its beginning.")]
Phase = Annotated[
    str | None, typer.Option(help="Only of this phase, such as train, before, after or evaluate.")
]


def check_phase(store: Any, phase: str | None) -> None:
    """Raises BadInput if no trace of a store has this phase."""
    from stateset_agents.errors import BadInput

    known = store.phases()
    if phase is not None and phase not in known:
        shown = ", ".join(repr(name) for name in known) or "no trace at all"
        raise BadInput(f"--phase: expected one of the store's, which are {shown}, found {phase!r}.")


@traces.command("list")
def traces_list(
    store: Place,
    phase: Phase = None,
    limit: Annotated[int, typer.Option(help="Number of traces.")] = 20,
) -> None:
    """The newest traces."""
    from stateset_agents.reporting.terminal import trace_table

    with open_store(store) as opened:
        check_phase(opened, phase)
        trace_table(opened.newest(phase=phase, limit=limit), opened.count(phase))


@traces.command("show")
def traces_show(store: Place, trace: TraceId) -> None:
    """One conversation with its tool calls, tokens and outcome."""
    from stateset_agents.reporting.terminal import show_trace

    with open_store(store) as opened:
        show_trace(opened.get(trace))


@traces.command("export")
def traces_export(
    store: Place,
    out: Annotated[Path, typer.Option(help="A .jsonl or .parquet file.")],
    phase: Phase = None,
) -> None:
    """All traces as JSON lines or Parquet."""
    from stateset_agents.traces.export import export

    with open_store(store) as opened:
        check_phase(opened, phase)
        count = export(opened, out, phase=phase)
    print(f"{count} traces in {out}")


@traces.command("import")
def traces_import(
    store: Place, file: Annotated[Path, typer.Argument(help="What `traces export` wrote.")]
) -> None:
    """Put exported traces into a store; a new store is made if there is none."""
    from stateset_agents.traces.export import load

    with open_store(store, create=True) as opened:
        new, known = load(opened, file)
    print(
        f"{new} traces from {file}, {known} left out: there already, or their customers forgotten"
    )


@traces.command("verify")
def traces_verify(store: Place) -> None:
    """Verify that every token is as recorded, and that each adapter learned from tokens of the recorded version."""
    from stateset_agents.traces.lineage import problems

    with open_store(store) as opened:
        wrong = 0
        for problem in problems(opened):
            wrong += 1
            if wrong <= 20:
                print(problem)
        count, learned = opened.count(), opened.certified()
    print(
        f"{count} traces, {learned} trained rows, {wrong or 'no'} problem{'' if wrong == 1 else 's'}"
    )
    raise typer.Exit(2 if wrong else 0)


@traces.command("feedback")
def traces_feedback(
    store: Place,
    key: Annotated[str, typer.Argument(help="Such as thumbs, csat, resolved.")],
    value: Annotated[float, typer.Argument(help="A number, such as 1 or 0.")],
    trace: Annotated[str, typer.Option(help="A trace's id, or its beginning.")] = "",
    thread: Annotated[str, typer.Option(help="All runs of this thread.")] = "",
    response: Annotated[str, typer.Option(help="The run of this response id.")] = "",
    comment: Annotated[str, typer.Option(help="In words; personal data is redacted.")] = "",
) -> None:
    """Attach feedback to a trace; `--reward feedback:KEY` can train on it."""
    with open_store(store) as opened:
        count = opened.feedback(
            key, value, trace=trace, thread=thread, response=response, comment=comment
        )
    print(f"{key} {value:g} for {count} trace{'' if count == 1 else 's'}")


@traces.command("forget")
def traces_forget(
    store: Place, customer: Annotated[str, typer.Option(help="Whose traces are erased.")]
) -> None:
    """Erase every trace of a customer, and name the adapters that learned from them."""
    from stateset_agents.traces.retention import forget

    with open_store(store) as opened:
        count, adapters = forget(opened, customer)
    print(f"{count} traces of {customer} erased")
    for adapter in adapters:
        print(f"{adapter} learned from them: train it again without them, or retire it")


@traces.command("prune")
def traces_prune(
    store: Place,
    days: Annotated[float | None, typer.Option(help="Erase what is older.", min=0)] = None,
    megabytes: Annotated[
        float | None, typer.Option(help="Erase the oldest beyond this size.", min=0)
    ] = None,
) -> None:
    """Erase old traces, by age, by size, or both."""
    from stateset_agents.errors import BadInput
    from stateset_agents.traces.retention import prune

    if days is None and megabytes is None:
        raise BadInput("Expected --days, --megabytes or both, found neither.")
    with open_store(store) as opened:
        print(
            f"{prune(opened, days=days, megabytes=megabytes)} traces erased, {opened.count()} left"
        )


@traces.command("key")
def traces_key() -> None:
    """A new key to keep tokens of redacted calls, encrypted."""
    from stateset_agents.traces.redaction import new_key

    print(new_key().decode())


@traces.command("kpi")
def traces_kpi(
    store: Place,
    by: Annotated[
        str,
        typer.Option(
            help="intent, version, graph, status, persona, tier, locale, or '' for all together."
        ),
    ] = "intent",
    objective: Annotated[
        list[str] | None,
        typer.Option(help="Only this one; can be given several times. Default: all available."),
    ] = None,
    ab: Annotated[
        str | None,
        typer.Option(
            "--ab",
            help="The name of an A/B test: a hash of name and thread says which half a thread is in.",
        ),
    ] = None,
    phase: Phase = None,
) -> None:
    """Business KPIs of a store with 95 % intervals, by group or for an A/B test."""
    from stateset_agents.errors import BadInput
    from stateset_agents.reporting.kpi import KEYS, Tally, bucket
    from stateset_agents.reporting.kpi_table import kpi_table, one_phase
    from stateset_agents.rewards.objectives import OBJECTIVES

    names = objective or list(OBJECTIVES)
    unknown = sorted(set(names) - OBJECTIVES.keys())
    if unknown:
        raise BadInput(
            f"--objective: expected some of {', '.join(OBJECTIVES)}, found {unknown[0]!r}."
        )
    if by and by not in KEYS:
        raise BadInput(f"--by: expected one of {', '.join(KEYS)}, found {by!r}.")
    tally = Tally(names)
    with open_store(store) as opened:
        check_phase(opened, phase)
        for trace in opened.traces(phase=phase or one_phase(opened)):
            group = bucket(trace.thread or trace.id, ab) if ab else KEYS[by](trace) if by else "all"
            tally.add(group or "-", trace)
    kpi_table(tally, title=f"A/B test {ab}" if ab else f"by {by}" if by else "")


@traces.command("replay")
def traces_replay(
    store: Place,
    trace: TraceId,
    graph: Annotated[
        str | None, typer.Option(help="package.module:graph, for a run that `record` kept.")
    ] = None,
    swap: Annotated[
        str | None,
        typer.Option("--set", help='TOOL=RESULT, such as \'get_order={"status": "shipped"}\'.'),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A run's folder: the policy that continues after --set.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="'seed', a folder, or a Hugging Face name; default: the run's own."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Policy servers that run already, as http://host:port/v1.")
    ] = None,
) -> None:
    """Play a run again from its record, and name the first difference. With --set, give a tool another result and let the
    policy (or, with --graph, the app's own models and tools) continue from there."""
    import asyncio

    from stateset_agents.jobs import replay
    from stateset_agents.reporting.terminal import show_trace

    with open_store(store) as opened:
        recorded = opened.get(trace)
        thread = list(opened.traces(thread=recorded.thread)) if recorded.thread else [recorded]
    change = None if swap is None else replay.parse_swap(swap)
    difference = None
    if graph is not None:
        runs = [run for run in thread if run.started <= recorded.started]
        made, difference = asyncio.run(replay.replay_app(graph, runs, change))
    elif change is None:
        made, difference = asyncio.run(replay.replay_episode(recorded, store))
    else:
        then = replay.policy_after(recorded, store, policy, model, base_url)
        made = asyncio.run(replay.replay_otherwise(recorded, change, then, store))
    if change is not None:
        show_trace(made)
    if difference:
        print(f"{recorded.id[:12]} differs: {difference}")
    elif change is None:
        print(f"{recorded.id[:12]}: the replay is identical")
    raise typer.Exit(2 if difference else 0)


@traces.command("proxy")
def traces_proxy(
    to: Annotated[str, typer.Option(help="An OpenAI-compatible URL that ends in /v1.")],
    store: Annotated[
        str, typer.Option("--traces", help="A store's file or postgresql://…")
    ] = "traces.db",
    exact: Annotated[
        bool, typer.Option(help="Ask for token ids: vLLM and the embedded engine give them.")
    ] = False,
    redact: Annotated[bool, typer.Option(help="Keep no personal data.")] = True,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8002,
) -> None:
    """Record an app in any language: point its base URL here."""
    import asyncio
    import contextlib
    import secrets

    from stateset_agents.jobs.serve_policy import LOOPBACK
    from stateset_agents.server.proxy import Proxy, serve
    from stateset_agents.server.supervisor import port_is_free
    from stateset_agents.settings import load_settings
    from stateset_agents.traces.redaction import Redacted, Redactor

    port_is_free(host, port)
    key = load_settings().api_key
    secret = key.get_secret_value() if key is not None else ""
    if not secret and host not in LOOPBACK:
        secret = secrets.token_urlsafe(24)
        print(f"STATESET_API_KEY is not set; the key of this proxy is {secret}", flush=True)
    with open_store(store, create=True) as opened, contextlib.suppress(KeyboardInterrupt):
        sink = Redacted(opened, Redactor()) if redact else opened
        print(f"http://{host}:{port}/v1 passes to {to} and records into {store}", flush=True)
        asyncio.run(serve(Proxy(to, sink, exact=exact, key=secret), host=host, port=port))


langsmith = CommandLine(help="Runs of LangSmith as traces, and traces as runs.")
traces.add_typer(langsmith, name="langsmith")


@langsmith.command("import")
def langsmith_import(
    store: Place,
    project: Annotated[
        str | None, typer.Option(help="A project of LangSmith (LANGSMITH_API_KEY).")
    ] = None,
    days: Annotated[float, typer.Option(help="How far back.", min=0)] = 1.0,
    file: Annotated[Path | None, typer.Option(help="An export: .jsonl or .parquet.")] = None,
    redact: Annotated[bool, typer.Option(help="Keep no personal data.")] = True,
) -> None:
    """Put LangSmith's runs into a store; a new store is made if there is none."""
    import asyncio
    import datetime

    from stateset_agents.errors import BadInput
    from stateset_agents.traces import langsmith as smith
    from stateset_agents.traces.redaction import Redactor

    if (project is None) == (file is None):
        raise BadInput(
            "Expected --project or --file, found " + ("both." if project else "neither.")
        )

    async def live(name: str) -> list[Any]:
        from langsmith import Client

        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        return [run async for run in smith.fetched(Client(), name, since=since)]

    problems: list[str] = []
    runs = smith.read(file, problems) if file is not None else asyncio.run(live(str(project)))
    imported = list(smith.traces_of(runs))
    if problems and not imported:
        raise BadInput(problems[0])
    if redact:
        redactor = Redactor()
        imported = [redactor.trace(trace) for trace in imported]
    with open_store(store, create=True) as opened:
        new, known = smith.store_all(opened, imported)
    print(f"{new} traces, {known} were there already; all are text: LangSmith keeps no token ids")
    if problems:
        print(f"{len(problems)} lines were left out, the first: {problems[0]}")
    odd = [trace for trace in imported if trace.lost]
    if odd:
        lost = sum(trace.lost for trace in odd)
        print(f"{lost} runs of {len(odd)} traces could not be read, the first: {odd[0].error}")


@langsmith.command("export")
def langsmith_export(
    store: Place,
    project: Annotated[str, typer.Option(help="A project of LangSmith (LANGSMITH_API_KEY).")],
    phase: Phase = None,
) -> None:
    """Send a store's traces to LangSmith, with scores, policy versions and feedback."""
    from langsmith import Client
    from langsmith.utils import LangSmithError

    from stateset_agents.errors import BadInput
    from stateset_agents.traces.langsmith import upload

    with open_store(store) as opened:
        check_phase(opened, phase)
        try:
            count = upload(opened, Client(), project, phase=phase)
        except (LangSmithError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise BadInput(
                f"Expected LangSmith to take the traces, found: {reason}. Look at LANGSMITH_API_KEY and LANGSMITH_ENDPOINT."
            ) from None
    print(f"{count} traces in project {project}")
