"""Words for the codes that road freight uses daily. A working subset: any other code is shown as it is."""

from __future__ import annotations

from collections.abc import Mapping

STATUSES = {  # shipment status, element 1650
    "AA": "estimated to arrive at pickup",
    "AF": "departed pickup location",
    "AG": "estimated delivery",
    "AH": "attempted delivery",
    "AP": "delivery not completed",
    "AR": "arrived by rail",
    "AV": "available for delivery",
    "A3": "returned to shipper",
    "A7": "refused by consignee",
    "A9": "damaged",
    "CA": "cancelled",
    "CD": "departed delivery location",
    "CP": "loaded at pickup",
    "D1": "unloaded at delivery",
    "I1": "in-gate",
    "J1": "delivered to interline",
    "OA": "out-gate",
    "P1": "departed terminal",
    "RL": "departed by rail",
    "SD": "delayed",
    "XB": "shipment acknowledged",
    "X1": "arrived at delivery location",
    "X2": "estimated arrival at consignee",
    "X3": "arrived at pickup location",
    "X4": "arrived at terminal",
    "X6": "en route to delivery",
}
ESTIMATES = {  # statuses that say what is expected, and the fact that they assert
    "AA": "estimated_pickup_at",
    "AG": "estimated_delivery_at",
    "X2": "estimated_delivery_at",
}
APPOINTMENTS = {  # element 1652
    "AA": "pickup appointment",
    "AB": "delivery appointment",
}
REASONS = {  # why a status is as it is, element 1651
    "AD": "customer requested future delivery",
    "AF": "accident",
    "AG": "consignee related",
    "AI": "mechanical breakdown",
    "AM": "shipper related",
    "AO": "weather",
    "BD": "border",
    "NA": "normal appointment",
    "NS": "normal status",
}
CONTACTS = {  # how to reach somebody, element 365
    "EM": "E-mail",
    "FX": "Fax",
    "TE": "Phone",
}
NORMAL_REASONS = frozenset({"NA", "NS", ""})
PURPOSES = {  # of a 204, element 353
    "00": "tendered",
    "01": "cancelled",
    "04": "changed",
    "05": "replaced",
}
ACTIONS = {  # of a 990, element 558
    "A": "accepted",
    "D": "declined",
    "C": "accepted with conditions",
}
STOPS = {  # reason of a stop, element 163
    "CL": "complete load",
    "CU": "complete unload",
    "DR": "drop trailer",
    "DT": "drop trailer",
    "LD": "load",
    "LE": "spot for load",
    "PA": "pick up preloaded equipment",
    "PL": "part load",
    "PU": "part unload",
    "SU": "spot for unload",
    "UL": "unload",
}
PICKUPS = frozenset({"CL", "LD", "LE", "PA", "PL"})
DELIVERIES = frozenset({"CU", "DR", "DT", "PU", "SU", "UL"})
DATES = {  # date qualifier, element 432
    "02": "delivery requested",
    "10": "ship date requested",
    "17": "estimated delivery",
    "37": "ship not before",
    "38": "ship not later than",
    "53": "deliver not before",
    "54": "deliver not later than",
    "64": "must respond by",
    "69": "pickup scheduled",
    "70": "delivery scheduled",
    "86": "picked up",
    "35": "delivered",
}
SHIP_DATES = ("69", "10", "37", "38")
DELIVERY_DATES = ("70", "02", "54", "53")
PARTIES = {  # party, element 98
    "BT": "Bill to",
    "CA": "Carrier name",
    "CN": "Consignee",
    "PR": "Payer",
    "PW": "Pick up at",
    "DA": "Deliver at",
    "SF": "Ship from",
    "SH": "Shipper",
    "ST": "Ship to",
}
PARTY_PREDICATES = {  # what a party is to the shipment or invoice
    "BT": "billed_to",
    "CN": "consignee",
    "PR": "billed_to",
    "SF": "shipper",
    "SH": "shipper",
    "ST": "consignee",
}
REFERENCES = {  # reference qualifier, element 128
    "BM": "Bill of lading",
    "CN": "Carrier's PRO",
    "CR": "Customer reference",
    "DO": "Delivery order",
    "LO": "Load",
    "MB": "Master bill of lading",
    "PO": "PO",
    "SI": "Shipper's reference",
}
WEIGHT_UNITS = {"": "lb", "K": "kg", "L": "lb"}  # element 188
PAYMENTS = {  # method of payment, element 146
    "PP": "prepaid",
    "CC": "collect",
    "TP": "third party",
}
CHARGES = {  # special charge, element 150
    "DET": "detention",
    "DSC": "discount",
    "FUE": "fuel surcharge",
    "LUM": "lumper",
    "SOC": "stop-off",
}
OUTCOMES = {  # of a set or a group, elements 717 and 715
    "A": "accepted",
    "E": "accepted, with errors noted",
    "M": "rejected",
    "P": "accepted in part",
    "R": "rejected",
    "W": "rejected",
    "X": "rejected",
}
SET_ERRORS = {  # element 718
    "1": "set not supported",
    "2": "set trailer missing",
    "3": "control numbers do not match",
    "4": "segment count does not match",
    "5": "segments in error",
    "6": "missing or invalid set id",
    "7": "missing or invalid control number",
}


def describe(words: Mapping[str, str], code: str) -> str:
    """Return the words for a code; the code itself where there are none."""
    return words.get(code, code)
