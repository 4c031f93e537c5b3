"""HubSpot's object types, their properties, and where each property goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apex_memory.sources.fields import RecordFields


@dataclass(frozen=True, slots=True)
class ObjectType:
    """A type of CRM objects.

    `plural` is its name in paths, `name` in webhooks and document keys, `type_id` in webhooks of the newer form. `modified`
    is the property that search windows go by. `labels` maps the properties that a document begins with to their labels.
    """

    plural: str
    name: str
    type_id: str
    modified: str
    labels: Mapping[str, str]


_COMPANY = ObjectType(
    "companies",
    "company",
    "0-2",
    "hs_lastmodifieddate",
    {
        "name": "Company",
        "domain": "Domain",
        "website": "Website",
        "phone": "Phone",
        "address": "Address",
        "city": "City",
        "state": "State",
        "zip": "Postal code",
        "country": "Country",
        "industry": "Industry",
        "type": "Type",
        "lifecyclestage": "Lifecycle stage",
        "numberofemployees": "Employees",
        "annualrevenue": "Annual revenue",
        "description": "Description",
    },
)
_CONTACT = ObjectType(
    "contacts",
    "contact",
    "0-1",
    "lastmodifieddate",
    {
        "firstname": "First name",
        "lastname": "Last name",
        "email": "E-mail",
        "phone": "Phone",
        "mobilephone": "Mobile",
        "jobtitle": "Job title",
        "company": "Company",
        "city": "City",
        "state": "State",
        "lifecyclestage": "Lifecycle stage",
        "hs_lead_status": "Lead status",
        "message": "Message",
        "associatedcompanyid": "Company id",
    },
)
_DEAL = ObjectType(
    "deals",
    "deal",
    "0-3",
    "hs_lastmodifieddate",
    {
        "dealname": "Deal",
        "dealstage": "Stage",
        "pipeline": "Pipeline",
        "amount": "Amount",
        "deal_currency_code": "Currency",
        "closedate": "Close date",
        "dealtype": "Type",
        "hs_priority": "Priority",
        "hs_next_step": "Next step",
        "description": "Description",
        "hubspot_owner_id": "Owner id",
        "hs_primary_associated_company": "Company id",
    },
)
OBJECT_TYPES: Mapping[str, ObjectType] = {type.plural: type for type in (_COMPANY, _CONTACT, _DEAL)}
BY_NAME = {type.name: type for type in OBJECT_TYPES.values()}
BY_TYPE_ID = {type.type_id: type for type in OBJECT_TYPES.values()}

_OWN_FIELDS: Mapping[str, str] = {
    "id": "text metadata",
    "createdAt": "text",
    "updatedAt": "version time",
}
_LEFT_OUT: Mapping[str, str] = {
    "archived": "an archived record is deleted here",
    "archivedAt": "the time of the delete",
    "properties.createdate": "the record's `createdAt`",
    "properties.hs_object_id": "the record's `id`",
    "properties.hs_lastmodifieddate": "the record's `updatedAt`",
    "properties.lastmodifieddate": "the record's `updatedAt`",
}
_OTHER_PLACES: Mapping[str, Mapping[str, str]] = {
    "company": {
        "name": "title text assertion",
        "domain": "text assertion",
        "phone": "text assertion",
        "city": "text assertion",
        "state": "text assertion",
        "lifecyclestage": "text metadata assertion",
    },
    "contact": {
        "firstname": "title text assertion",
        "lastname": "title text assertion",
        "email": "text assertion",
        "phone": "text assertion",
        "mobilephone": "text assertion",
        "jobtitle": "text assertion",
        "company": "text assertion",
        "lifecyclestage": "text metadata",
    },
    "deal": {
        "dealname": "title text assertion",
        "dealstage": "text metadata assertion",
        "pipeline": "text metadata",
        "amount": "text metadata assertion",
        "deal_currency_code": "text metadata",
        "hubspot_owner_id": "text metadata",
        "hs_primary_associated_company": "text assertion",
    },
}
"""By document kind: the places of properties that stand in more than the text."""


def _record_fields(type: ObjectType) -> RecordFields:
    places = {name: _OTHER_PLACES[type.name].get(name, "text") for name in type.labels}
    return RecordFields(
        type.name,
        shown={**_OWN_FIELDS, **{f"properties.{name}": where for name, where in places.items()}},
        left_out=_LEFT_OUT,
    )


FIELDS: Mapping[str, RecordFields] = {
    type.name: _record_fields(type) for type in OBJECT_TYPES.values()
}
