"""Words for the codes that road freight uses daily. A working subset: what is not here is told as its code."""

from __future__ import annotations

STATUSES = {
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
APPOINTMENTS = {"AA": "pickup appointment", "AB": "delivery appointment"}
REASONS = {
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
NORMAL = frozenset({"NA", "NS", ""})
PURPOSES = {"00": "tendered", "01": "cancelled", "04": "changed", "05": "replaced"}
ACTIONS = {"A": "accepted", "D": "declined", "C": "accepted with conditions"}
STOPS = {
    "CL": "complete load",
    "CU": "complete unload",
    "DT": "drop trailer",
    "LD": "load",
    "PL": "part load",
    "PU": "part unload",
    "UL": "unload",
}
PICKUPS = frozenset({"CL", "PL", "LD"})
DELIVERIES = frozenset({"CU", "PU", "UL"})
DATES = {
    "02": "delivery requested",
    "10": "ship date requested",
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
PARTIES = {
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
ROLES = {
    "BT": "billed_to",
    "CN": "consignee",
    "PR": "billed_to",
    "SF": "shipper",
    "SH": "shipper",
    "ST": "consignee",
}
REFERENCES = {
    "BM": "Bill of lading",
    "CN": "Carrier's PRO",
    "CR": "Customer reference",
    "DO": "Delivery order",
    "LO": "Load",
    "MB": "Master bill of lading",
    "PO": "PO",
    "SI": "Shipper's reference",
}
PAYMENTS = {"PP": "prepaid", "CC": "collect", "TP": "third party"}
CHARGES = {
    "DET": "detention",
    "DSC": "discount",
    "FUE": "fuel surcharge",
    "LUM": "lumper",
    "SOC": "stop-off",
}
GROUP_ANSWERS = {
    "A": "accepted",
    "E": "accepted, with errors noted",
    "M": "rejected",
    "P": "accepted in part",
    "R": "rejected",
    "W": "rejected",
    "X": "rejected",
}
SET_FAULTS = {
    "1": "set not supported",
    "2": "set trailer missing",
    "3": "control numbers do not match",
    "4": "segment count does not match",
    "5": "segments in error",
    "6": "missing or invalid set id",
    "7": "missing or invalid control number",
}
