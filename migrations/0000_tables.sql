CREATE TABLE `agent_wallets` (
	`agent_id` text PRIMARY KEY NOT NULL,
	`address` text NOT NULL,
	`private_key` text NOT NULL,
	`key_id` text,
	`recipient_public_key` text,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `attempts` (
	`incarnation` text NOT NULL,
	`number` integer NOT NULL,
	`provider` text NOT NULL,
	`region` text NOT NULL,
	`plan` text NOT NULL,
	`label` text NOT NULL,
	`mark` text NOT NULL,
	`public_key` text NOT NULL,
	`private_key` text,
	`key_id` text NOT NULL,
	`host_public_key` text NOT NULL,
	`create_sent_at` integer NOT NULL,
	`instance_id` text,
	`boot_deadline_at` integer,
	`started_at` integer NOT NULL,
	`ended_at` integer,
	`outcome` text,
	`detail` text,
	`gone_at` integer,
	PRIMARY KEY(`incarnation`, `number`)
);
--> statement-breakpoint
CREATE INDEX `attempts_by_label` ON `attempts` (`label`);--> statement-breakpoint
CREATE TABLE `catalogs` (
	`id` integer PRIMARY KEY NOT NULL,
	`tiers` text,
	`tiers_at` integer,
	`stock` text
);
--> statement-breakpoint
CREATE TABLE `counters` (
	`name` text PRIMARY KEY NOT NULL,
	`value` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `cursors` (
	`id` integer PRIMARY KEY NOT NULL,
	`block_number` integer NOT NULL,
	`block_hash` text NOT NULL,
	`block_timestamp` integer NOT NULL,
	`checkpoints` text NOT NULL,
	`range` integer NOT NULL,
	`lease` text DEFAULT '' NOT NULL,
	`lease_until` integer DEFAULT 0 NOT NULL,
	`scanned_at` integer NOT NULL,
	`swept_at` integer DEFAULT 0 NOT NULL,
	`catalog_asked_at` integer DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE TABLE `disputes` (
	`token_id` integer PRIMARY KEY NOT NULL,
	`since` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `failed_provisionings` (
	`id` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`incarnation` text NOT NULL,
	`token_id` integer NOT NULL,
	`tier` integer NOT NULL,
	`cause` text NOT NULL,
	`detail` text NOT NULL,
	`attempts` integer NOT NULL,
	`created_at` integer NOT NULL,
	`resolved_at` integer
);
--> statement-breakpoint
CREATE INDEX `failed_provisionings_open` ON `failed_provisionings` (`created_at`) WHERE resolved_at IS NULL;--> statement-breakpoint
CREATE TABLE `gaps` (
	`token_id` integer PRIMARY KEY NOT NULL,
	`from_block` integer NOT NULL,
	`to_block` integer NOT NULL,
	`tries` integer DEFAULT 0 NOT NULL,
	`next_try_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX `gaps_due` ON `gaps` (`next_try_at`);--> statement-breakpoint
CREATE TABLE `nonces` (
	`address` text NOT NULL,
	`nonce` text NOT NULL,
	`expires_at` integer NOT NULL,
	PRIMARY KEY(`address`, `nonce`)
);
--> statement-breakpoint
CREATE INDEX `nonces_expired` ON `nonces` (`expires_at`);--> statement-breakpoint
CREATE TABLE `owner_counts` (
	`owner` text PRIMARY KEY NOT NULL,
	`count` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `purchases` (
	`incarnation` text PRIMARY KEY NOT NULL,
	`token_id` integer NOT NULL,
	`tx_hash` text NOT NULL,
	`ordinal` integer NOT NULL,
	`block_number` integer NOT NULL,
	`block_hash` text NOT NULL,
	`log_index` integer NOT NULL,
	`buyer` text NOT NULL,
	`tier` integer NOT NULL,
	`duration_days` integer NOT NULL,
	`purchase_date` integer NOT NULL,
	`total_cost` text NOT NULL,
	`orphaned` integer DEFAULT false NOT NULL,
	`seen_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX `purchases_by_token` ON `purchases` (`token_id`);--> statement-breakpoint
CREATE INDEX `purchases_by_block` ON `purchases` (`block_number`);--> statement-breakpoint
CREATE INDEX `purchases_orphaned` ON `purchases` (`block_number`) WHERE orphaned = 1;--> statement-breakpoint
CREATE TABLE `renewals` (
	`block_number` integer NOT NULL,
	`log_index` integer NOT NULL,
	`token_id` integer NOT NULL,
	`new_expiry` integer NOT NULL,
	PRIMARY KEY(`block_number`, `log_index`)
);
--> statement-breakpoint
CREATE INDEX `renewals_by_token` ON `renewals` (`token_id`,`new_expiry`);--> statement-breakpoint
CREATE TABLE `transfers` (
	`block_number` integer NOT NULL,
	`log_index` integer NOT NULL,
	`block_hash` text NOT NULL,
	`token_id` integer NOT NULL,
	`sender` text NOT NULL,
	`recipient` text NOT NULL,
	PRIMARY KEY(`block_number`, `log_index`)
);
--> statement-breakpoint
CREATE INDEX `transfers_by_token` ON `transfers` (`token_id`,`block_number`,`log_index`);--> statement-breakpoint
CREATE TABLE `vms` (
	`incarnation` text PRIMARY KEY NOT NULL,
	`token_id` integer NOT NULL,
	`current` integer DEFAULT true NOT NULL,
	`owner` text NOT NULL,
	`tier` integer NOT NULL,
	`vm_type` text NOT NULL,
	`tx_hash` text NOT NULL,
	`block_number` integer NOT NULL,
	`status` text NOT NULL,
	`step` text NOT NULL,
	`generation` integer DEFAULT 1 NOT NULL,
	`lease` text DEFAULT '' NOT NULL,
	`lease_until` integer DEFAULT 0 NOT NULL,
	`wake_at` integer,
	`deadline` integer NOT NULL,
	`created_at` integer NOT NULL,
	`expires_at` integer NOT NULL,
	`check_at` integer,
	`expired_at` integer,
	`attempt` integer DEFAULT 0 NOT NULL,
	`provider` text,
	`region` text,
	`plan` text,
	`instance_id` text,
	`ssh_host` text,
	`ssh_port` integer,
	`ssh_private_key` text,
	`key_id` text,
	`running_at` integer,
	`delivered_at` integer,
	`delivered_to` text,
	`acknowledged_at` integer,
	`fresh_owner` text,
	`failure` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX `vms_current_token` ON `vms` (`token_id`) WHERE current = 1;--> statement-breakpoint
CREATE UNIQUE INDEX `vms_instance` ON `vms` (`provider`,`instance_id`) WHERE instance_id IS NOT NULL;--> statement-breakpoint
CREATE INDEX `vms_by_owner` ON `vms` (`owner`,`token_id`) WHERE current = 1;--> statement-breakpoint
CREATE INDEX `vms_to_wake` ON `vms` (`wake_at`) WHERE wake_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX `vms_to_check` ON `vms` (`check_at`) WHERE check_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX `vms_pending` ON `vms` (`created_at`) WHERE current = 1 AND status = 'provisioning';--> statement-breakpoint
CREATE INDEX `vms_delivered` ON `vms` (`delivered_at`) WHERE ssh_private_key IS NOT NULL AND delivered_at IS NOT NULL;