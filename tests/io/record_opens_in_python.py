"""Opens records with h5py, xarray and h5dump, none of which share code with the writer: record_opens_in_python.py WRITER.

WRITER is write_small_run; tests/io/record_support.h says what every element is.
"""
import math
import os
import shutil
import subprocess
import sys
import tempfile

try:
    import h5py
except ImportError:
    print("SKIPPED: python3-h5py is not installed")
    sys.exit(77)
import numpy as np

ROWS, DOCUMENTS, EXPERTS, K = 45, 9, 7, 2
IDS = ["a", "bb", "wiki/größe-0001", "wiki/zwei", "c", "d", "e", "a-much-longer-name-than-all-the-others", "f"]
checks = 0


def check(condition, what):
    global checks
    checks += 1
    if not condition:
        raise AssertionError(what)


def equal(found, expected, what):
    check(np.array_equal(np.asarray(found), np.asarray(expected)), f"{what}: {found!r} is not {expected!r}")


row = np.arange(ROWS)


def expert(layer):
    return np.stack([(row * 3 + slot * 5 + layer) % EXPERTS for slot in range(K)], axis=1)


def weight():
    return np.stack([1 / (1 + row % 8 + slot) for slot in range(K)], axis=1).astype(np.float16)


def every_object_says_what_it_is(file):
    def visit(name, thing):
        if isinstance(thing, h5py.Group):
            check(isinstance(thing.attrs["description"], str) and thing.attrs["description"], name)
            return
        is_scale = h5py.h5ds.is_scale(thing.id)
        if not is_scale or b"not a netCDF variable" not in thing.attrs["NAME"]:
            check(isinstance(thing.attrs["units"], str) and thing.attrs["units"], name)
            check(isinstance(thing.attrs["long_name"], str) and thing.attrs["long_name"], name)
            for axis, dimension in enumerate(thing.dims):
                if is_scale:
                    continue
                check(len(dimension) == 1, f"{name}: dimension {axis} has one scale")
                check(dimension[0].shape == (thing.shape[axis],), f"{name}: scale {axis} is as long as the data set")
                check(h5py.h5ds.is_attached(thing.id, dimension[0].id, axis), f"{name}: scale {axis} is attached both ways")

    file.visititems(visit)


def names(data_set):
    return [dimension[0].name.split("/")[-1] for dimension in data_set.dims]


def open_with_h5py(path, level):
    with h5py.File(path) as file:
        check(file.attrs["format"] == "switchyard-routing", "format")
        check(file.attrs["format_version"] == "1.0", "format_version")
        check(file.attrs["level"] == level, "level")
        check(file["model"].attrs["family"] == "mixtral" and file["model"].attrs["d_model"] == 16, "model")
        equal(file["model/moe_layers"], [1, 12], "moe_layers")
        check(file["model/n_experts"][()] == 7 and file["model/top_k"][()] == 2, "n_experts, top_k")
        equal(file["tokens/id"], row * 7 + 3, "id")
        equal(np.isnan(file["tokens/loss"]), row % 5 == 4, "loss is NaN")
        equal(file["tokens/loss"][0:4], 0.25 * row[0:4], "loss")
        check(file["tokens/loss"].attrs["units"] == "nats", "units")
        for layer, decoder_layer in enumerate([1, 12]):
            group = file[f"routing/layer_{decoder_layer:03d}"]
            check(group["expert"].dtype == np.uint8 and group["expert"].fillvalue == 255, "u8, all ones")
            equal(group["expert"], expert(layer), "expert")
            check(group["weight"].dtype == np.float16 and math.isnan(group["weight"].fillvalue), "float16")
            equal(group["weight"], weight(), "weight")
            check(group["entropy"].dtype == np.float16, "float16")
            equal(group["entropy"], 0.125 * ((row + layer) % 16), "entropy")
            check(names(group["expert"]) == ["token", "slot"], "dimensions")
            check(("logits" in group) == (level == "logits"), "logits")
            if level == "logits":
                equal(group["logits"], row[:, None] + 0.5 * np.arange(EXPERTS) - layer, "logits")
                check(names(group["logits"]) == ["token", "logical_expert"], "dimensions")
        equal([text.decode() for text in file["documents/id"]], IDS, "ids of different lengths")
        equal(file["documents/first_token"], np.arange(DOCUMENTS) * 5, "first_token")
        check(file["dispatch/step_tokens"].shape == (9, 3), "widest")
        equal(file["dispatch/step_tokens"][0], [0, 1, 0xFFFFFFFF], "filled")
        check(len(file["tokens/id"].virtual_sources()) == 3, "a source for each segment with rows")
        check(file["tokens/id"].virtual_sources()[0].file_name == "segments/segment-000000.h5", "relative")
        every_object_says_what_it_is(file)


def open_segments(folder):
    for number, rows in [(0, 10), (1, 15), (2, 0), (3, 20)]:
        with h5py.File(f"{folder}/segments/segment-{number:06d}.h5") as file:
            check(("tokens" in file) == (rows > 0), "rows")
            if rows:
                check(file["tokens/id"].shape == (rows,), "rows")
                check(file["tokens/id"].compression == ("gzip" if number == 3 else None), "compressed on request")
            equal(file["accumulators/expert_count"], [[1, 2, 3], [4, 5, 6]], "accumulators")
            check(file["accumulators/sparse/index"].shape == (0,), "empty CSR")
            every_object_says_what_it_is(file)


def open_with_xarray(folder, level):
    try:
        import h5netcdf  # noqa: F401
        import xarray
    except ImportError:
        print("without xarray: python3-xarray or python3-h5netcdf is not installed")
        return
    path = f"{folder}/routing.h5"
    open_group = lambda name, file=path: xarray.open_dataset(file, engine="h5netcdf", group=name)
    with open_group("tokens") as data:
        check(data["id"].dims == ("token",) and data.sizes["token"] == ROWS, "tokens")
        check(data["loss"].attrs["units"] == "nats", "units")
        equal(data["position"].values, row % 5, "position")
        equal(data["document"].values, row // 5, "document")
    for layer, group in enumerate(["routing/layer_001", "routing/layer_012"]):
        with open_group(group) as data:
            check(data["expert"].dims == ("token", "slot"), "dims of expert")
            check(data["weight"].dtype == np.float16, "float16")
            equal(data["expert"].values, expert(layer), "expert")
            equal(data["weight"].values, weight(), "weight")
            if level == "logits":
                check(data["logits"].dims == ("token", "logical_expert"), "dims of logits")
                check(data["logits"].sel(token=44, logical_expert=6).item() == 44 + 3 - layer, "logits")
    with open_group("documents") as data:
        check(data["id"].dims == ("document",), "documents")
    with open_group("dispatch") as data:
        check(data["seconds"].dims == ("step", "rank") and data["seconds"].attrs["units"] == "s", "dispatch")
        equal(np.isnan(data["seconds"].values).sum(), 10, "filled")
    with open_group("corpora") as data:
        equal(data["tokens"].values, [25, 20], "corpora")
    with open_group("accumulators", f"{folder}/segments/segment-000001.h5") as data:
        check(data["expert_count"].dims == ("layer", "expert"), "accumulators")
    with open_group("accumulators/sparse", f"{folder}/segments/segment-000001.h5") as data:
        check(data.sizes["nonzero"] == 0 and data.sizes["row"] == 3, "empty CSR")
    stats = f"{folder}/stats.h5"
    with open_group("load", stats) as data:
        check(data["count"].dims == ("dataset", "layer", "expert") and data["count"].dtype == np.uint64, "load")
    with open_group("entropy", stats) as data:
        equal(data["histogram"].sel(bin=1.5).values, [8, 10], "a coordinate of the group")
    with open_group("margin", stats) as data:
        check(data["histogram"].dims == ("dataset", "bin") and data.sizes["bin"] == 3, "another length in another group")
    with open_group("sparse", stats) as data:
        check(data.sizes["nonzero"] == 0, "empty CSR")
    print("xarray opened all groups")


def dump_headers(folder):
    if shutil.which("h5dump") is None:
        print("without h5dump: hdf5-tools is not installed")
        return
    for name in ["routing.h5", "stats.h5", "segments/segment-000003.h5"]:
        text = subprocess.run(["h5dump", "-H", name], cwd=folder, check=True, capture_output=True, text=True).stdout
        check('GROUP "/"' in text and "DATASET" in text, name)
    text = subprocess.run(["h5dump", "-d", "/routing/layer_012/expert", "routing.h5"], cwd=folder, check=True,
                          capture_output=True, text=True).stdout
    check("(44,0): " in text and "H5T_STD_U8LE" in text, "h5dump reads virtual rows")
    print("h5dump read all files")


def main():
    writer = sys.argv[1]
    for level in ["tokens", "logits"]:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([writer, folder, level], check=True)
            open_with_h5py(os.path.join(folder, "routing.h5"), level)
            open_segments(folder)
            with h5py.File(os.path.join(folder, "stats.h5")) as file:
                every_object_says_what_it_is(file)
            open_with_xarray(folder, level)
            dump_headers(folder)
    check(checks > 500, "few checks ran")
    print(f"{checks} checks passed")


main()
