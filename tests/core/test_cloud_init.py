import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.core.cloud_init import merge
from virtlet.errors import PluginError
from virtlet.model.cloudinit import CloudInit, CloudInitPart

SECRET = "hunter2"
SCALARS = st.text(max_size=5) | st.integers(0, 9) | st.booleans() | st.none()
DOCUMENTS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.recursive(
        SCALARS | st.lists(SCALARS, max_size=3),
        lambda children: st.dictionaries(st.sampled_from(["x", "y"]), children, max_size=2),
        max_leaves=6,
    ),
)


def user(**document: object) -> CloudInitPart:
    return CloudInitPart(user_data=document)


def test_nothing_gives_empty_documents() -> None:
    assert merge([]) == CloudInit()


@given(DOCUMENTS, DOCUMENTS)
def test_one_part_stays_as_it_is(
    meta_data: dict[str, object], user_data: dict[str, object]
) -> None:
    part = CloudInitPart(meta_data=meta_data, user_data=user_data)
    assert merge([("one", part)]) == CloudInit(meta_data=meta_data, user_data=user_data)


@given(DOCUMENTS)
def test_no_plugin_can_change_what_another_returned(document: dict[str, object]) -> None:
    kept = repr(document)
    merged = merge([("one", CloudInitPart(user_data=document))])
    for value in merged.user_data.values():
        if isinstance(value, list | dict):
            value.clear()
    assert repr(document) == kept


def test_mappings_recurse_and_lists_append_in_order() -> None:
    merged = merge(
        [
            ("one", user(runcmd=["a"], apt={"sources": {"x": 1}}, hostname="web")),
            ("two", user(runcmd=["b"], apt={"sources": {"y": 2}}, hostname="web")),
            ("three", user(runcmd=["a"])),
        ]
    )
    assert merged.user_data == {
        "runcmd": ["a", "b", "a"],
        "apt": {"sources": {"x": 1, "y": 2}},
        "hostname": "web",
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [(SECRET, "other"), (1, True), (0, False), ([1], {"a": 1}), ({"a": 1}, None), ([1], SECRET)],
)
def test_a_clash_names_both_plugins_and_the_key_but_no_value(first: object, second: object) -> None:
    with pytest.raises(PluginError) as caught:
        merge(
            [
                ("one", user(users={"root": {"password": first}})),
                ("two", user(runcmd=["x"])),
                ("three", user(users={"root": {"password": second}})),
            ]
        )
    message = str(caught.value)
    assert "'one and three'" in message
    assert "user-data key 'users.root.password'" in message
    assert "virtlet_cloud_init" in message
    assert SECRET not in message


def test_a_clash_in_meta_data_says_so() -> None:
    parts = [(n, CloudInitPart(meta_data={"instance-id": n})) for n in ("one", "two")]
    with pytest.raises(PluginError, match="both set meta-data key 'instance-id'"):
        merge(parts)


def test_a_mapping_inside_a_mapping_of_another_blames_who_set_the_key() -> None:
    parts = [
        ("one", user(a={"x": 1})),
        ("two", user(a={"y": {"z": 1}})),
        ("three", user(a={"y": {"z": 2}})),
    ]
    with pytest.raises(PluginError, match=r"'two and three'.*'a\.y\.z'"):
        merge(parts)


def test_an_overridden_key_is_that_part_s_alone() -> None:
    part = CloudInitPart(
        user_data={"runcmd": ["mine"], "packages": ["p"]}, overrides=frozenset({"runcmd"})
    )
    merged = merge([("one", user(runcmd=["a"])), ("two", part), ("three", user(runcmd=["b"]))])
    assert merged.user_data == {"runcmd": ["mine"], "packages": ["p"]}


def test_overriding_a_key_one_does_not_set_changes_nothing() -> None:
    part = CloudInitPart(overrides=frozenset({"runcmd"}))
    assert merge([("one", user(runcmd=["a"])), ("two", part)]).user_data == {"runcmd": ["a"]}


def test_two_parts_cannot_override_one_key() -> None:
    part = CloudInitPart(user_data={"runcmd": []}, overrides=frozenset({"runcmd"}))
    with pytest.raises(PluginError, match="'one and two'.*both override user-data key 'runcmd'"):
        merge([("one", part), ("two", part)])


def test_script_and_network_configuration_are_taken_from_the_part_that_has_them() -> None:
    merged = merge(
        [
            ("one", CloudInitPart(script="#!/bin/sh\n")),
            ("two", CloudInitPart(network_config={"version": 2})),
        ]
    )
    assert merged.script == "#!/bin/sh\n"
    assert merged.network_config == {"version": 2}


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (CloudInitPart(script="#!/bin/sh\n"), "user-data script"),
        (CloudInitPart(network_config={"version": 2}), "network configuration"),
    ],
)
def test_script_and_network_configuration_are_given_once(part: CloudInitPart, what: str) -> None:
    with pytest.raises(PluginError, match=f"'one and three'.*both give a {what}"):
        merge([("one", part), ("two", CloudInitPart()), ("three", part)])


@pytest.mark.parametrize(
    "part",
    [
        CloudInitPart(meta_data={"key": b"x"}),
        CloudInitPart(user_data={"key": object()}),
        CloudInitPart(network_config={"key": {1, 2}}),
    ],
)
def test_what_json_cannot_express_is_blamed_on_the_plugin(part: CloudInitPart) -> None:
    with pytest.raises(PluginError, match=r"plugin 'two'.*is no plain data"):
        merge([("one", user(a=1)), ("two", part)])


@given(st.lists(DOCUMENTS, max_size=4))
def test_any_documents_merge_or_clash_by_name(documents: list[dict[str, object]]) -> None:
    parts = [(f"p{n}", CloudInitPart(user_data=d)) for n, d in enumerate(documents)]
    try:
        merged = merge(parts)
    except PluginError:
        assert len(parts) > 1
        return
    assert set(merged.user_data) == {key for d in documents for key in d}
