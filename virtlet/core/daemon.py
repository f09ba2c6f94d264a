"""The manager: its parts put together, started in order and stopped in reverse."""

import logging
import os
import pwd
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvloop

from virtlet.cluster.api import KUBECONFIG, Cluster
from virtlet.console.hub import ConsoleHub
from virtlet.console.log_writer import ConsoleLogs
from virtlet.core import log_setup, paths, process_memory, serving
from virtlet.core.config import load
from virtlet.core.config import options as core_options
from virtlet.core.config.mapped import AppliedSettings, ConfigMappings
from virtlet.core.cri.subjects import Subjects
from virtlet.core.disk_reserve import DiskReserve
from virtlet.core.events import EventTeller
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import Registry, settings_of_departed
from virtlet.core.lifecycle import effects, exits, recovery, template_store
from virtlet.core.lifecycle.context import Context, KeyedLocks
from virtlet.core.lifecycle.file_updates import FileUpdates
from virtlet.core.lifecycle.hypervisors import Hypervisors
from virtlet.core.lifecycle.image_handlers import recognize_by_anyone
from virtlet.core.lifecycle.journal import Journal, points_from_environment
from virtlet.core.metrics.manager import ManagerMetrics
from virtlet.core.metrics.sampler import Sampler
from virtlet.core.paths import Paths
from virtlet.core.store.ownership import open_store
from virtlet.core.store.store import Store
from virtlet.core.vm_consoles import VmConsoles
from virtlet.core.vm_users import VmUsers
from virtlet.errors import FailedPrecondition
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import Images
from virtlet.images.staging import ImageLimits
from virtlet.launch.server import LaunchServer
from virtlet.launch.wrapper import emulator_problem, install_wrapper
from virtlet.model.node import Node
from virtlet.model.option import Option, Settings
from virtlet.model.plain import quote
from virtlet.service_manager import ServiceManager
from virtlet.threads import Worker
from virtlet.traces import TracesUnusable, from_environment

log = logging.getLogger(__name__)


def declared(registry: Registry) -> list[Option[Any]]:
    """All options, of the core and of plugins."""
    return [*core_options.CORE_OPTIONS, *(o for _, o in Hooks(registry).options())]


def settings(
    registry: Registry,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
    mapped: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Settings:
    """Read all layers of the configuration; see `load.load`."""
    return load.load(
        declared(registry),
        file=file,
        environment=environment,
        flags=flags,
        mapped=mapped,
        refused=registry.refused,
        departed=lambda data_dir: settings_of_departed(data_dir, registry),
    )


def serve(
    registry: Registry,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
) -> None:
    """Run the manager until SIGTERM or SIGINT; VMs go on running after it.

    Args:
        registry: the plugins.
        file: the configuration; with `environment` and `flags` as in `load.load`.

    Raises:
        VirtletError: it cannot start; the message says why.
    """
    service = ServiceManager()  # Before there are children, to whom the environment goes.
    config = settings(registry, file, environment, flags)
    _log(registry, config)
    process_memory.share_heap()
    with ExitStack() as undo:
        options = declared(registry)
        mappings = ConfigMappings(
            Cluster(config[KUBECONFIG]),
            config[core_options.CONFIG_NAMESPACE],
            config[core_options.NODE_NAME],
            options,
            config[core_options.DATA_DIR] / "mapped",
        )
        mappings.start()
        undo.callback(mappings.stop)
        mapped = mappings.values()
        config = settings(registry, file, environment, flags, mapped)
        metrics = ManagerMetrics()
        lines = _log(registry, config)
        context = _assemble(registry, config, undo, lines, metrics)
        live: Mapping[str, Callable[[Any], None]] = {
            core_options.LOG_LEVEL.field: partial(
                log_setup.set_level, packages=registry.logging_packages()
            ),
            core_options.HOOK_PATIENCE.field: partial(setattr, context.hooks.watch, "patience"),
            core_options.PINNED_IMAGES.field: context.images.store.pin,
        }
        own = load.said(options, file=file, environment=environment, flags=flags)
        in_force = AppliedSettings(mappings, options, own, mapped, live)
        context.needs_restart = lambda: in_force.needs_restart
        mappings.tell(in_force.look)
        sampler = Sampler(context)
        sampler.start()
        undo.callback(sampler.stop)
        updates = FileUpdates(context)
        updates.start()
        undo.callback(updates.stop)
        hub = ConsoleHub()
        hub.start()
        undo.callback(hub.stop)
        uvloop.run(serving.serve_until_asked(context, config, sampler, hub, metrics, service))
    log.info("stopped; VMs go on running")


def _log(registry: Registry, config: Settings) -> log_setup.Lines:
    return log_setup.set_up(
        config[core_options.LOG_LEVEL],
        config[core_options.LOG_FORMAT],
        registry.logging_packages(),
        quoting=config[core_options.SHOW_PLUGIN_ERRORS],
    )


def _assemble(
    registry: Registry,
    config: Settings,
    undo: ExitStack,
    lines: log_setup.Lines,
    metrics: ManagerMetrics,
) -> Context:
    """Start every part but the servers; `undo` stops them in reverse order."""
    places = Paths(config[core_options.DATA_DIR])
    places.make()
    undo.enter_context(paths.lock(places.data_dir, "--data-dir"))
    database = config[core_options.DATABASE]
    reserve = DiskReserve(places.reserve, database)
    reserve.release()
    uid, gid = emulator_user(config)
    store = open_store(database, places)
    undo.callback(store.close)
    lines.named = Subjects(store).names
    here = Node(
        data_dir=places.data_dir,
        run_dir=places.run_dir,
        instance=store.instance,
        vmwrapper=install_wrapper(places.vmwrapper, config[core_options.EMULATOR], uid, gid),
        emulator=config[core_options.EMULATOR],
        emulator_problem=emulator_problem(config[core_options.EMULATOR], uid, gid),
        emulator_uid=uid,
        emulator_gid=gid,
    )

    recovery.remove_orphaned_directories(store, places)
    hooks = _start_plugins(registry, config, undo, here, store)
    profiles = Profiles(config.sections.get("handlers", {}), registry)

    users = VmUsers(config[core_options.VM_USERS], store, places)
    launches = LaunchServer(
        config[core_options.FD_SERVER_SOCKET],
        uid,
        gid,
        cgroup_required=config[core_options.VM_CGROUP] == "required",
    )
    launches.start()
    undo.callback(launches.stop)
    console_logs = ConsoleLogs()
    console_logs.start()
    undo.callback(console_logs.stop)
    consoles = VmConsoles(
        console_logs, places, uid, gid, disabled=config[core_options.DISABLE_LOGGING]
    )
    events = EventTeller(hooks, profiles)
    events.listen(metrics.event)
    events.start()
    undo.callback(events.stop)
    layout = Layout(config[core_options.IMAGE_DIR], gid)
    # Before the image store opens: it removes what our VMs do not use, and another manager's may.
    undo.enter_context(paths.lock(layout.directory, "--image-dir"))
    images = ImageStore(
        layout,
        in_use=lambda: {image for record in store.vms.values() for image in record.image_ids},
        recognize=recognize_by_anyone(hooks, profiles),
        limits=ImageLimits.of(config[core_options.IMAGE_LIMIT]),
        pinned=config[core_options.PINNED_IMAGES],
    )

    hypervisors = Hypervisors(hooks, profiles)
    context = Context(
        node=here,
        store=store,
        hooks=hooks,
        profiles=profiles,
        hypervisors=hypervisors,
        images=Images(images),
        launches=launches,
        consoles=consoles,
        events=events,
        reserve=reserve,
        locks=KeyedLocks(hooks.watch.hanging, metrics.waited),
        new_user=users.take,
        templates=template_store.Templates(
            bounds=template_store.Bounds(
                number=config[core_options.TEMPLATE_LIMIT],
                memory=config[core_options.TEMPLATE_MEMORY],
                disk=config[core_options.TEMPLATE_DISK],
                age=config[core_options.TEMPLATE_AGE] * 3600.0,
            )
        ),
    )
    undo.callback(context.images.close)
    context.journal = Journal(
        store,
        lambda row: effects.revert(context, row),
        points_from_environment(os.environ),
        reserve.release,
        metrics.step,
        hooks.watch.traces,
    )
    metrics.watch(context)
    watchers = ThreadPoolExecutor(4, "domain-events")
    undo.callback(watchers.shutdown, cancel_futures=True)
    undo.callback(hypervisors.close)
    undo.callback(context.backends.close)
    undo.callback(context.templates.wait, 20.0)
    undo.callback(context.closing.set)
    hypervisors.open(exits.reports(context, watchers))
    template_store.reconcile(places.templates)
    ageing = Worker("template-age", lambda: context.templates.evict(places.templates))
    ageing.start()
    undo.callback(ageing.stop)
    recovery.recover(context)
    return context


def _start_plugins(
    registry: Registry, config: Settings, undo: ExitStack, node: Node, store: Store
) -> Hooks:
    """Hand plugins their settings and what is stored; `undo` shuts them down."""
    hooks = Hooks(registry)
    hooks.watch.patience = config[core_options.HOOK_PATIENCE]
    try:
        hooks.watch.traces = from_environment("virtlet", os.environ)
    except TracesUnusable as error:
        raise FailedPrecondition(str(error)) from None
    undo.callback(hooks.watch.traces.close)
    hooks.govern(config.sections.get("plugins", {}), node.data_dir)
    hooks.watch.start()
    undo.callback(hooks.watch.stop)
    undo.callback(hooks.shutdown)
    hooks.configure(config, node)
    # Before anything is undone or requested: plugins end what they left under way.
    hooks.reconcile(
        [record.pod for record in store.pods.values()], [record.vm for record in store.vms.values()]
    )
    hooks.recall(node.data_dir, config[core_options.FORGOTTEN_PLUGINS])
    hooks.remember(node.data_dir)
    return hooks


def emulator_user(config: Settings) -> tuple[int, int]:
    """User and group id that the emulator runs as.

    Raises:
        FailedPrecondition: there is no such user, or it is root.
    """
    option = core_options.EMULATOR_USER
    name = config[option]
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise FailedPrecondition(
            f"{option.flag} {quote(name)}: there is no such user on this node, and the emulator "
            "does not run as root instead: create it (the "
            "hypervisor's package brings the default one) or name another"
        ) from None
    if entry.pw_uid == 0:
        raise FailedPrecondition(
            f"{option.flag} {quote(name)}: that is root, as which no emulator runs: a guest that "
            "takes one over would have the node; name another user"
        )
    return entry.pw_uid, entry.pw_gid
