-- Runs once, when the database cluster is made: a role and a database for Apex, and for Temporal. Neither is a superuser.
\set apex_password `cat /run/secrets/apex_db_password`
\set temporal_password `cat /run/secrets/temporal_db_password`
CREATE ROLE apex LOGIN PASSWORD :'apex_password';
CREATE ROLE temporal LOGIN PASSWORD :'temporal_password';
CREATE DATABASE apex OWNER apex;
CREATE DATABASE temporal OWNER temporal;
CREATE DATABASE temporal_visibility OWNER temporal;
REVOKE CONNECT ON DATABASE apex, temporal, temporal_visibility, postgres FROM PUBLIC;
-- Temporal's visibility schema creates the trusted extension btree_gin, which the owner of the database may do.
