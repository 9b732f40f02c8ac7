-- Revisions, what changed in each, who did it, and who follows.

create table tenant (
    id         uuid primary key,
    name       text not null unique,
    created_at timestamptz not null default now()
);
-- One tenant for now; every row that belongs to somebody names it, so that a second one is data.
insert into tenant (id, name) values ('00000000-0000-7000-8000-000000000001', 'default');

-- The one row whose lock puts administrative writes in an order without gaps. A sequence would not:
-- a lower number may become visible later.
create table control_revision (
    is_only  boolean primary key default true check (is_only),
    revision bigint not null
);
insert into control_revision (revision) values (0);

create table change_log (
    revision   bigint primary key,
    changes    jsonb not null,
    written_at timestamptz not null default now()
);

create table audit_log (
    id          uuid not null,
    at          timestamptz not null default now(),
    tenant_id   uuid not null references tenant,
    actor_kind  text not null check (actor_kind in ('user', 'key', 'operator', 'system', 'anonymous')),
    actor_id    uuid,
    login_id    uuid,
    address     inet,
    request_id  text not null,
    action      text not null,
    object_kind text not null,
    object_id   text not null,
    before      jsonb,
    after       jsonb,
    primary key (at, id)
) partition by range (at);
create index audit_log_actor on audit_log (actor_id, at desc, id desc);
create index audit_log_object on audit_log (object_kind, object_id, at desc, id desc);
create index audit_log_newest on audit_log (tenant_id, at desc, id desc);
-- Rows go here if nobody made the month's partition in time; whoever tends partitions moves them.
create table audit_log_rest partition of audit_log default;

create table plane (
    id               uuid primary key,
    name             text not null,
    address          text not null,
    version          text not null,
    applied_revision bigint not null default 0,
    first_seen       timestamptz not null default now(),
    last_seen        timestamptz not null default now()
);
