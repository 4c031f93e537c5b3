"""Where each field of a QuickBooks record goes: text, metadata, assertions, or left out with a reason."""

from __future__ import annotations

from collections.abc import Mapping

from apex_memory.sources.fields import RecordFields

_RECORD: Mapping[str, str] = {
    "Id": "text metadata",
    "MetaData.CreateTime": "text",
    "MetaData.LastUpdatedTime": "version time",
    "SyncToken": "version",
    "CustomField.Name": "text",
    "CustomField.StringValue": "text",
    "CustomField.NumberValue": "text",
    "CustomField.DateValue": "text",
    "CustomerMemo.value": "text",
    "PrivateNote": "text",
}
_TRANSACTION: Mapping[str, str] = {
    "DocNumber": "text metadata",
    "TxnDate": "text metadata",
    "TotalAmt": "text metadata assertion",
    "Balance": "text metadata",
    "CurrencyRef.value": "text metadata",
    "Line.Amount": "text",
    "Line.Description": "text",
}
_PARTY: Mapping[str, str] = {
    **_RECORD,
    "DisplayName": "title text assertion",
    "CompanyName": "text",
    "GivenName": "text",
    "FamilyName": "text",
    "PrimaryEmailAddr.Address": "text assertion",
    "PrimaryPhone.FreeFormNumber": "text assertion",
    "BillAddr.Line1": "text",
    "BillAddr.City": "text assertion",
    "BillAddr.CountrySubDivisionCode": "text assertion",
    "BillAddr.PostalCode": "text",
    "AcctNum": "text",
    "Balance": "text metadata",
    "CurrencyRef.value": "text metadata",
    "Notes": "text",
}
_LEFT_OUT: Mapping[str, str] = {
    "domain": "`QBO` for all of them",
    "sparse": "how much of the record a call returned",
    "status": "a deleted record is deleted here",
    "Active": "an inactive record is deleted here",
    "Line.Id": "the line's place",
    "Line.LineNum": "the line's place",
}
_NUMBERED: Mapping[str, str] = {**_RECORD, **_TRANSACTION, "DocNumber": "title text metadata"}
FIELDS: Mapping[str, RecordFields] = {
    "Invoice": RecordFields(
        "invoice",
        shown={**_NUMBERED, "CustomerRef.name": "text assertion", "DueDate": "text"},
        left_out=_LEFT_OUT,
    ),
    "Bill": RecordFields(
        "bill",
        shown={**_NUMBERED, "VendorRef.name": "title text assertion", "DueDate": "text"},
        left_out=_LEFT_OUT,
    ),
    "Payment": RecordFields(
        "payment",
        shown={
            **_RECORD,
            **{name: where for name, where in _TRANSACTION.items() if name != "DocNumber"},
            "CustomerRef.name": "title text assertion",
            "PaymentRefNum": "text",
            "PaymentMethodRef.name": "text",
        },
        left_out=_LEFT_OUT,
    ),
    "Customer": RecordFields("customer", shown=_PARTY, left_out=_LEFT_OUT),
    "Vendor": RecordFields("vendor", shown=_PARTY, left_out=_LEFT_OUT),
}
OTHER_FIELDS = RecordFields(
    "every other kind of record",
    shown=_NUMBERED,
    left_out=_LEFT_OUT,
    note="A record without a DocNumber has its Name, its DisplayName or its id in the title.",
)
