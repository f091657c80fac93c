"""Tables and vectors: faults of steel plates, readings of gas sensors, patients of four hospitals."""

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from client.data.indexed import Numbers
from client.data.table import encode
from common.columns import parse_columns
from common.errors import SettingsError, SourceError
from common.settings import DataSettings
from simulations.sources.described import CatalogueSet
from simulations.sources.files import Entry, Files, Origin
from simulations.sources.manifest import file_entry
from simulations.sources.pool import Pool
from simulations.sources.sets.pictures import load_arrays

log = logging.getLogger("fedreptile.data")

Row = dict[str, str]


def _rows(files: Files, entry: Entry, needed: Iterable[str]) -> list[Row]:
    """Return the rows of a CSV file. Raises SourceError if it lacks a column or a row is cut off."""
    rows = list(csv.DictReader(files.read(entry).decode("utf-8", "replace").splitlines()))
    header = rows[0].keys() if rows else ()
    missing = [name for name in needed if name not in header]
    if missing or any(None in row or None in row.values() for row in rows):
        found = f"lacks the columns {', '.join(missing)}" if missing else "has a row of another length than its header"
        raise SourceError(f"{files.where(entry)} {found}; it is not the published file: delete it and fetch it again")
    return rows


def _pool(rows: Sequence[Row], data: DataSettings, attributes: Mapping[str, str]) -> Pool:
    """Encode rows as the settings say. Raises SettingsError if they name a column, or a kind of value, that is not.

    Args:
        attributes: name of each attribute -> its column.
    """
    columns = parse_columns(data.columns)
    for name in (data.label, *(column.name for column in columns)):
        if name not in rows[0]:
            raise SettingsError(
                f"data.label or data.columns names {name!r}, which the set does not have; it has {', '.join(rows[0])}"
            )
    values, faults = encode(columns, rows)
    if fatal := [fault for fault in faults if fault.fatal]:
        raise SettingsError(
            f"data.columns takes {fatal[0].column!r} for numbers, but {fatal[0].reason}; list its values: "
            f"{fatal[0].column}=A|B"
        )
    if faults:
        log.warning("%d values are not among those that data.columns lists and count as missing", len(faults))
    classes = tuple(row[data.label] for row in rows)
    return Pool(
        values.astype(np.float32), classes, {name: tuple(row[key] for row in rows) for name, key in attributes.items()}
    )


# ------------------------------------------------------------------------------------------- steel plates

PLATE_COLUMNS = (
    "X_Minimum", "X_Maximum", "Y_Minimum", "Y_Maximum", "Pixels_Areas", "X_Perimeter", "Y_Perimeter",
    "Sum_of_Luminosity", "Minimum_of_Luminosity", "Maximum_of_Luminosity", "Length_of_Conveyer", "TypeOfSteel_A300",
    "TypeOfSteel_A400", "Steel_Plate_Thickness", "Edges_Index", "Empty_Index", "Square_Index", "Outside_X_Index",
    "Edges_X_Index", "Edges_Y_Index", "Outside_Global_Index", "LogOfAreas", "Log_X_Index", "Log_Y_Index",
    "Orientation_Index", "Luminosity_Index", "SigmoidOfAreas",
)  # fmt: skip
FAULTS = {
    "Pastry_Fault": "Pastry",
    "Z_Scratch_Fault": "Z_Scratch",
    "K_Scatch_Fault": "K_Scatch",
    "Stains_Fault": "Stains",
    "Dirtiness_Fault": "Dirtiness",
    "Bumps_Fault": "Bumps",
    "Other_Faults": "Other",
}
"""Column of the origin -> class."""


def _read_plates(files: Files, data: DataSettings) -> Pool:
    (entry,) = files.entries
    needed = (*PLATE_COLUMNS, "steel", "fault") if files.packed else (*PLATE_COLUMNS, *FAULTS)
    rows = _rows(files, entry, needed)
    rows = rows if files.packed else [_plate(row) for row in rows]
    return _pool(rows, data, {"steel": "steel", "conveyer": "Length_of_Conveyer"})


def _plate(row: Row) -> Row:
    """Turn the origin's columns of 0 and 1 into the names of steel and fault."""
    fault = next((name for column, name in FAULTS.items() if row[column] == "1"), "none")
    steel = "A300" if row["TypeOfSteel_A300"] == "1" else "A400"
    return {name: row[name] for name in PLATE_COLUMNS} | {"steel": steel, "fault": fault}


STEEL_PLATES_FAULTS = CatalogueSet(
    name="steel_plates_faults",
    title="Faults of steel plates: 1941 records of 27 features measured in pictures",
    kind="table",
    classes=7,
    items=1941,
    natural=("steel",),
    licence="CC BY 4.0 (unchecked)",
    terms="None in the repository; UCI offers its data sets under CC BY 4.0 (not checked on its own page).",
    cite="Buscema, Terzi, Tastle, Steel Plates Faults, UCI Machine Learning Repository",
    origins=(
        Origin("Akshay9705/adapting-digital-tools-and-lean-six-sigma", "e34668f18b4fdb42dd090da860aea22a85222d14"),
    ),
    data={"data.kind": "table", "data.label": "fault", "data.columns": ", ".join(PLATE_COLUMNS)},
    read=_read_plates,
    listing=lambda folder: (
        file_entry(folder, folder / "faults.csv"),
        Entry(origin=((0, "data/SteelPlatesFaults_Clean.csv"), (0, "SteelPlatesFaults_Clean.csv"))),
    ),
    counts={
        "Bumps": 402,
        "Dirtiness": 55,
        "K_Scatch": 391,
        "Other": 673,
        "Pastry": 158,
        "Stains": 72,
        "Z_Scratch": 190,
    },
)

# -------------------------------------------------------------------------------------------- gas sensors

GASES = ("Ethanol", "Ethylene", "Ammonia", "Acetaldehyde", "Acetone", "Toluene")
FEATURES = 128


def _read_gases(files: Files, data: DataSettings) -> Pool:
    """Read the sensors' 128 features; the vector's length must be that."""
    if data.size != FEATURES:
        raise SettingsError(f"data.size is {data.size}; gas_drift has vectors of {FEATURES}")
    if not files.packed:
        return _gases([part for entry in files.entries for part in _batch(files, entry)])
    (entry,) = files.entries
    arrays = load_arrays(files.read(entry), str(files.where(entry)), "x", "gas", "batch")
    gases = tuple(GASES[gas] for gas in arrays["gas"])
    return Pool(arrays["x"], gases, {"batch": tuple(str(batch) for batch in arrays["batch"])})


def _batch(files: Files, entry: Entry) -> Iterator[tuple[str, list[float], str]]:
    """Yield gas, features and batch of each line ``GAS,PPM,128 numbers``."""
    batch = entry.names.stem.removeprefix("batch")
    for number, line in enumerate(files.read(entry).decode("ascii", "replace").splitlines(), 1):
        words = line.strip().split(",")
        try:
            if words[0] not in GASES or len(words) != FEATURES + 2:
                raise ValueError(f"it begins with {words[0]!r} and has {len(words)} values")
            yield words[0], [float(word) for word in words[2:]], batch
        except ValueError as error:
            raise SourceError(
                f"{files.where(entry)} line {number} is not a gas, its concentration and {FEATURES} numbers: {error}; "
                "delete the file and fetch it again"
            ) from error


def _gases(lines: Sequence[tuple[str, list[float], str]]) -> Pool:
    gases, features, batches = zip(*lines, strict=True)
    values: Numbers = np.array(features, dtype=np.float32)
    return Pool(values, gases, {"batch": batches})


GAS_DRIFT = CatalogueSet(
    name="gas_drift",
    title="Six gases by 16 sensors that drift: 3927 readings of 128 features, 6 of the 10 batches in time",
    kind="vector",
    classes=6,
    items=3927,
    natural=("batch",),
    licence="CC BY 4.0 (unchecked)",
    terms="None in the repository; UCI offers its data sets under CC BY 4.0 (not checked on its own page); the authors "
    "ask for use in research only, and to be cited.",
    cite="Vergara et al., Sensors and Actuators B (2012); Rodriguez-Lujan et al. (2014)",
    origins=(Origin("BrechtDewilde1/BDProject", "92224f33465d8f76d82d9f3083027675f23b1c18"),),
    data={"data.kind": "vector", "data.size": FEATURES},
    read=_read_gases,
    listing=lambda folder: (
        file_entry(folder, folder / "batches.npz"),
        *(Entry(origin=((0, f"data/batch{batch}.dat"),)) for batch in (1, 2, 3, 4, 5, 8)),
    ),
    counts={"Ethanol": 741, "Ethylene": 1035, "Ammonia": 471, "Acetaldehyde": 488, "Acetone": 1095, "Toluene": 97},
)

# ---------------------------------------------------------------------------------------- heart disease

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
HEART_COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip


def _read_heart(files: Files, data: DataSettings) -> Pool:
    """Read the four tables. Labels: "disease" (num 0, or 1 to 4) or "num"."""
    rows: list[Row] = []
    for hospital, entry in _by_hospital(files):
        num = "num" if files.packed else "target"
        for row in _rows(files, entry, (*HEART_COLUMNS, num)):
            kept = {name: row[name] for name in HEART_COLUMNS}
            disease = "no disease" if row[num] == "0" else "disease"
            rows.append(kept | {"num": row[num], "disease": disease, "hospital": hospital})
    return _pool(rows, data, {"hospital": "hospital", "num": "num"})


def _by_hospital(files: Files) -> list[tuple[str, Entry]]:
    """Return the tables in the order of HOSPITALS: ``HOSPITAL.csv`` or ``processed.HOSPITAL.data``."""
    found = {entry.names.name.removeprefix("processed.").partition(".")[0]: entry for entry in files.entries}
    return [(hospital, found[hospital]) for hospital in HOSPITALS]


def _heart_listing(folder: Path) -> Iterator[Entry]:
    sizes = {"cleveland": 18534, "hungarian": 10342, "switzerland": 3915, "va": 6118}
    for hospital in HOSPITALS:
        yield file_entry(folder, folder / f"{hospital}.csv")
        yield Entry(size=sizes[hospital], origin=((0, f"data/processed.{hospital}.data"),))


HEART_DISEASE_HOSPITALS = CatalogueSet(
    name="heart_disease_hospitals",
    title="Heart disease: 13 findings of 920 patients of four hospitals, much of it missing",
    kind="table",
    classes=2,
    items=920,
    natural=("hospital",),
    licence="CC BY 4.0",
    terms="CC BY 4.0 by its authors (README of fed_heart_disease in owkin/FLamby). Publications are asked to name the "
    "investigators: Andras Janosi, M.D. (Budapest); William Steinbrunn, M.D. (Zurich); Matthias Pfisterer, M.D. "
    "(Basel); Robert Detrano, M.D., Ph.D. (Long Beach and Cleveland). Not for clinical use.",
    cite="Janosi, Steinbrunn, Pfisterer, Detrano, Heart Disease, UCI Machine Learning Repository",
    origins=(Origin("rsbaher/udemy-heart-disease-2023", "6f565ae36156d64aafb9c1855b9e51357db915df"),),
    data={
        "data.kind": "table",
        "data.label": "disease",
        "data.columns": "age, sex=0|1, cp=1|2|3|4, trestbps, chol, fbs=0|1, restecg=0|1|2, thalach, exang=0|1, "
        "oldpeak, slope=1|2|3, ca, thal=3|6|7",
    },
    read=_read_heart,
    listing=_heart_listing,
    counts={"no disease": 164 + 188 + 8 + 51, "disease": 139 + 106 + 115 + 149},
)
