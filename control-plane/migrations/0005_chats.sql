-- Sessions, their messages, and files.

create table chat (
    id            uuid primary key,
    tenant_id     uuid not null references tenant,
    -- null: shared by the anonymous callers of one profile.
    user_id       uuid,
    profile       text not null,
    title         text not null default '' check (length(title) <= 500),
    is_active     boolean not null default true,
    agent_id      uuid references agent on delete set null,
    -- Grows with every write of messages: caches of a history compare it.
    version       bigint not null default 0,
    message_count bigint not null default 0,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    -- Its rows go in batches later.
    deleted_at    timestamptz,
    foreign key (tenant_id, user_id) references app_user (tenant_id, id) on delete cascade
);
create index chat_of_user on chat (user_id, updated_at desc, id desc) where deleted_at is null;
create index chat_of_anonymous on chat (profile, updated_at desc, id desc)
    where deleted_at is null and user_id is null;
create index chat_deleted on chat (deleted_at) where deleted_at is not null;
create index chat_idle on chat (updated_at) where deleted_at is null;

create table message (
    chat_id       uuid not null references chat on delete cascade,
    id            uuid not null,
    -- Its place in the session: the order in which messages were stored.
    place         bigint not null,
    role          text not null check (role in ('system', 'user', 'assistant', 'tool')),
    content       jsonb not null,
    tokens        integer check (tokens >= 0),
    state         text not null default 'done' check (state in ('done', 'cancelled', 'failed')),
    metadata      jsonb not null default '{}',
    created_at    timestamptz not null default now(),
    primary key (chat_id, id),
    unique (chat_id, place)
) partition by hash (chat_id);
do $$
begin
    for part in 0..15 loop
        execute format('create table message_%s partition of message for values with (modulus 16, remainder %s)', part, part);
    end loop;
end $$;

create table file (
    id         uuid primary key,
    tenant_id  uuid not null references tenant,
    -- null: shared by the anonymous callers of one profile.
    user_id    uuid,
    profile    text not null,
    name       text not null check (length(name) between 1 and 255),
    media_type text not null,
    bytes      bigint not null check (bytes >= 0),
    sha256     bytea not null check (length(sha256) = 32),
    -- Where its bytes are in the store; two files never share them.
    blob       text not null unique,
    created_at timestamptz not null default now(),
    foreign key (tenant_id, user_id) references app_user (tenant_id, id) on delete cascade
);
create index file_of_user on file (user_id, id desc);
create index file_of_anonymous on file (profile, id desc) where user_id is null;
-- Bytes that no row owns: of an upload that has not ended, or of a file that is gone. Whoever tends
-- the store deletes them from that moment on.
create table file_garbage (
    blob       text primary key,
    not_before timestamptz not null
);
create index file_garbage_due on file_garbage (not_before);
-- However a file's row goes, also with its user, its bytes are not forgotten.
create function file_gone() returns trigger language plpgsql as $$
begin
    insert into file_garbage (blob, not_before) select blob, now() from gone;
    return null;
end $$;
create trigger file_gone after delete on file referencing old table as gone
    for each statement execute function file_gone();
