"""A branch that is killed, and does not come back: until it is missed no more nothing is said to be gone for sure."""

from pathlib import Path

from tests.api.meshes import created, meshes
from tests.waiting import until

NEW = "/v1/apps/shop/instances"


async def test_what_a_killed_branch_had_is_not_said_to_be_gone_until_an_operator_says_so(tmp_path: Path) -> None:
    async with meshes(tmp_path, "a", "b", "c") as branches:
        ask = branches["a"].api
        owners = {name: await created(branches["a"], name) for name in ("one", "two", "three")}
        lost = next(name for name, owner in owners.items() if owner == "c")
        branches["c"].mesh._membership.bus.crash()  # type: ignore[attr-defined]
        await until(branches["a"].mesh.lost, 30)

        listed = (await ask("GET", "/v1/branches?fresh=1")).json
        assert ([one["name"] for one in listed["items"]], listed["partial"]) == (["a", "b"], False)
        for path in ("/v1/instances", NEW, "/v1/operations"):
            listed = (await ask("GET", path)).json
            assert (listed["partial"], listed["unreachable"]) == (True, ["c"]), path
        unsure = await ask("GET", f"{NEW}/{lost}")
        assert (unsure.status, "not connected: c" in unsure.json["detail"]) == (503, True)
        [finding] = [one for one in (await ask("GET", "/v1/doctor")).json["findings"] if one["check"] == "branches"]
        assert "1 missing: c" in finding["detail"]
        for name, owner in owners.items():
            if owner != "c":
                assert (await ask("DELETE", f"{NEW}/{name}?wait=10s")).status == 204
        refused = await ask("DELETE", "/v1/apps/shop")
        assert (refused.status, "not known of c" in refused.json["detail"]) == (503, True)

        assert (await ask("POST", "/v1/branches/a/actions/confirm")).status == 200
        listed = (await ask("GET", "/v1/instances")).json
        assert (listed["items"], listed["partial"]) == ([], False)
        assert (await ask("GET", f"{NEW}/{lost}")).status == 404
        assert (await ask("DELETE", "/v1/apps/shop")).status == 204


async def test_who_said_goodbye_is_not_missed(tmp_path: Path) -> None:
    async with meshes(tmp_path, "a", "b") as branches:
        await branches["b"].mesh.end()
        await until(lambda: not branches["a"].mesh.others(), 30)
        listed = (await branches["a"].api("GET", "/v1/instances")).json
        assert (listed["items"], listed["partial"]) == ([], False)
        assert (await branches["a"].api("GET", f"{NEW}/none")).status == 404
        assert (await branches["a"].api("DELETE", "/v1/apps/shop")).status == 204
