-- API keys: a MAC of each secret, never the secret.

create table pepper (
    id         uuid primary key,
    sealed     bytea not null,
    is_current boolean not null,
    created_at timestamptz not null default now()
);
create unique index pepper_current on pepper (is_current) where is_current;

create table api_key (
    id                  uuid primary key,
    tenant_id           uuid not null,
    owner_id            uuid not null,
    public_id           text not null unique check (public_id ~ '^[0-9A-Za-z]{12}$'),
    mac                 bytea not null check (length(mac) = 32),
    pepper_id           uuid not null references pepper,
    name                text not null check (length(name) between 1 and 200),
    scopes              text[] not null,
    models              text[],
    networks            text[] not null default '{}',
    enabled             boolean not null default true,
    requests_per_minute integer check (requests_per_minute > 0),
    tokens_per_minute   bigint check (tokens_per_minute > 0),
    budget_nano         bigint check (budget_nano >= 0),
    budget_window       text check (budget_window in ('day', 'month', 'total')),
    expires_at          timestamptz,
    -- The former secret of that key, which works until expires_at and goes with it.
    former_of           uuid references api_key on delete cascade,
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    last_used_on        date,
    check ((budget_nano is null) = (budget_window is null)),
    unique (tenant_id, id),
    foreign key (tenant_id, owner_id) references app_user (tenant_id, id) on delete cascade
);
create index api_key_owner on api_key (owner_id, id desc) where former_of is null;
create index api_key_newest on api_key (tenant_id, id desc) where former_of is null;
create index api_key_former on api_key (former_of) where former_of is not null;
create index api_key_pepper on api_key (pepper_id);
