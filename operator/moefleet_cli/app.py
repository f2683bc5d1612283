"""The commands. Each reads arguments, calls one border, prints, and ends with a code from `exits`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from moefleet.inference.v1 import inference_pb2 as pb
from rich.live import Live

from . import exits
from .cold_starts import cold_starts_command
from .convert import convert_command
from .explain import explain_command
from .fleets import Cluster, ClusterError, rows
from .gateway import Address, GatewayError, generate, models
from .history import history_command, undo_command
from .options import InputError, Output, OutputOption, console
from .plan import plan_command
from .policies import policies_command
from .record import record_command
from .replay import replay_app
from .tables import models_table, top_table

# A terminal is read, not watched by the millisecond, and the operator writes numbers every 30 s.
REFRESH_S = 2.0
GENERATE_LIMIT_S = 900.0


app = typer.Typer(
    name="moefleet",
    help="Ask a moefleet gateway, and see what fleets do.",
    epilog=exits.help_text(),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AddressOption = Annotated[
    str,
    typer.Option(
        "--address", "-a", envvar="MOEFLEET_ADDRESS", help="HOST:PORT of the gateway.", metavar="HOST:PORT"
    ),
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Use TLS; the gateway itself speaks plain gRPC.")]
CaOption = Annotated[
    Path | None, typer.Option("--ca", help="With --tls: PEM file of the authority to trust.")
]


@app.command("generate")
def generate_command(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    *,
    address: AddressOption,
    model: Annotated[str, typer.Option("--model", "-m", help="Model name, or namespace/name.")],
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, prompt and model: same tokens.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds for the whole answer.", min=0.001)
    ] = GENERATE_LIMIT_S,
    tls: TlsOption = False,
    ca: CaOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Stream the answer to a prompt. Text goes to standard output, counts and times to standard error."""
    request = pb.GenerateRequest(
        model=model,
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        sampling=pb.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        stopping=pb.Stopping(max_tokens=max_tokens),
    )
    answer = generate(
        Address(address, tls, ca), request, timeout, _write if output is Output.TEXT else _ignore
    )
    if output is Output.JSON:
        print(json.dumps(answer.to_json()))
        return
    print(flush=True)
    speed = f", {answer.tokens_per_s:.1f} tokens/s" if answer.tokens_per_s else ""
    first = f", first after {answer.ttft_s:.2f} s" if answer.ttft_s is not None else ""
    print(
        f"{answer.prompt_tokens} prompt tokens ({answer.cached_prompt_tokens} cached), "
        f"{answer.completion_tokens} generated ({answer.finish_reason}){first}{speed}",
        file=sys.stderr,
    )


@app.command("models")
def models_command(
    address: AddressOption, tls: TlsOption = False, ca: CaOption = None, output: OutputOption = Output.TEXT
) -> None:
    """List the models that a gateway serves."""
    found = models(Address(address, tls, ca))
    if output is Output.JSON:
        names = ("name", "fleet", "engine", "context_length", "vocabulary_size")
        print(json.dumps([{name: getattr(m, name) for name in names} for m in found]))
    else:
        console().print(models_table(found))


@app.command("top")
def top_command(
    *,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: that of the context.")
    ] = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Print once; so it is when the output is no terminal.")
    ] = False,
    kubeconfig: Annotated[str | None, typer.Option(help="Default: as kubectl.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show what fleets do: tokens/s, replicas, load, time to first token, cost, and why they have their size."""
    if namespace and everywhere:
        raise typer.BadParameter("give --namespace or --all-namespaces, not both")
    cluster = Cluster(kubeconfig, context)
    where = None if everywhere else (namespace or cluster.namespace)
    if output is Output.JSON:
        print(json.dumps([r.to_json() for r in rows(cluster.fleets(where))]))
        return
    screen = console()
    if once or not screen.is_terminal:
        found = rows(cluster.fleets(where))
        if not found:
            print(
                f"no fleets {'in any namespace' if where is None else f'in namespace {where}'}",
                file=sys.stderr,
            )
            return
        screen.print(top_table(found, namespaces=everywhere))
        return
    # Rights and names are checked before the screen is taken; later faults may pass, and are shown meanwhile.
    found = rows(cluster.fleets(where))
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        problem = ""
        while True:
            table = top_table(found, namespaces=everywhere)
            table.caption = problem or None
            live.update(table, refresh=True)
            time.sleep(REFRESH_S)
            try:
                found, problem = rows(cluster.fleets(where)), ""
            except ClusterError as error:
                problem = f"{error}; the numbers are old"


app.command("cold-starts")(cold_starts_command)
app.command("convert")(convert_command)
app.command("explain")(explain_command)
app.command("history")(history_command)
app.command("undo")(undo_command)
app.command("record")(record_command)
app.command("policies")(policies_command)
app.command("plan")(plan_command)
app.add_typer(replay_app, name="replay")


def run(arguments: list[str] | None = None, name: str = "moefleet") -> int:
    """Runs a command and returns its exit code; the only place where errors become words."""
    try:
        app(args=arguments, prog_name=name, standalone_mode=True)
    except (GatewayError, ClusterError, InputError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return int(error.code)
    except KeyboardInterrupt:
        return int(exits.Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader has seen enough (`| head`); nothing may be written while Python ends.
        sys.stderr.close()
        return int(exits.Exit.OK)
    except SystemExit as end:
        return (
            end.code
            if isinstance(end.code, int)
            else int(exits.Exit.OK if end.code is None else exits.Exit.FAILED)
        )
    return int(exits.Exit.OK)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _ignore(text: str) -> None:
    """JSON comes whole, at the end."""
