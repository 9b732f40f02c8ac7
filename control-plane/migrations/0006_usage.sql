-- What was used: each event once, and its sums by hour and by day.

create table usage_event (
    stored_at         timestamptz not null default now(),
    id                uuid not null,
    producer          uuid not null,
    number            bigint not null,
    tenant_id         uuid not null,
    key_id            uuid,
    user_id           uuid,
    profile           text not null,
    model             text not null,
    upstream_id       uuid,
    started_at        timestamptz not null,
    prompt_tokens     integer not null,
    cached_tokens     integer not null,
    output_tokens     integer not null,
    first_token_us    bigint,
    duration_us       bigint not null,
    cost_nano         bigint not null,
    outcome           text not null check (outcome in ('done', 'cancelled', 'failed')),
    source            text not null check (source in ('engine', 'provider', 'estimate')),
    primary key (stored_at, id)
) partition by range (stored_at);
create index usage_event_user on usage_event (user_id, stored_at desc, id desc);
create index usage_event_key on usage_event (key_id, stored_at desc, id desc);
create index usage_event_newest on usage_event (tenant_id, stored_at desc, id desc);
-- Cut by the time of storing, so that a late event never meets a partition that is gone.
create table usage_event_rest partition of usage_event default;

-- Sums. No nulls in the key: absent is the nil id, so that a conflict is a conflict.
create table usage_hour (
    tenant_id     uuid not null,
    hour          timestamptz not null,
    user_id       uuid not null,
    key_id        uuid not null,
    model         text not null,
    upstream_id   uuid not null,
    outcome       text not null,
    requests      bigint not null,
    prompt_tokens bigint not null,
    cached_tokens bigint not null,
    output_tokens bigint not null,
    cost_nano     numeric(30) not null,
    duration_us   numeric(30) not null,
    primary key (tenant_id, hour, user_id, key_id, model, upstream_id, outcome)
);
create index usage_hour_user on usage_hour (user_id, hour);
create index usage_hour_key on usage_hour (key_id, hour);
create table usage_day (
    tenant_id     uuid not null,
    day           date not null,
    user_id       uuid not null,
    key_id        uuid not null,
    model         text not null,
    upstream_id   uuid not null,
    outcome       text not null,
    requests      bigint not null,
    prompt_tokens bigint not null,
    cached_tokens bigint not null,
    output_tokens bigint not null,
    cost_nano     numeric(30) not null,
    duration_us   numeric(30) not null,
    primary key (tenant_id, day, user_id, key_id, model, upstream_id, outcome)
);
create index usage_day_user on usage_day (user_id, day);
create index usage_day_key on usage_day (key_id, day);

-- The last number stored of each producer.
create table usage_cursor (
    producer   uuid primary key,
    last       bigint not null,
    updated_at timestamptz not null default now()
);

create table budget_state (
    subject      uuid not null,
    window_start timestamptz not null,
    spent_nano   numeric(30) not null default 0,
    primary key (subject, window_start)
);
-- Slices of limits that planes hold.
create table lease (
    plane      uuid not null,
    subject    uuid not null,
    unit       text not null check (unit in ('requests', 'tokens', 'nano')),
    granted    bigint not null,
    until      timestamptz not null,
    primary key (subject, unit, plane)
);
create table limit_state (
    subject      uuid not null,
    unit         text not null,
    window_start timestamptz not null,
    used         bigint not null,
    primary key (subject, unit)
);
