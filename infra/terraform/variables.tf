variable "environment" {
  description = "Names everything (mmbert-<environment>) and the folder of its secrets (mmbert/<environment>/)."
  type        = string
  default     = "prod"

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,9}$", var.environment))
    error_message = "Two to ten lower-case letters and digits, a letter first: it becomes part of bucket names."
  }
}

variable "region" {
  description = "AWS region. It needs p5.48xlarge in h100_zone."
  type        = string
  default     = "us-east-1"
}

variable "vpc_cidr" {
  description = "Addresses of the VPC. infra/kubernetes/overlays/prod/network-policies.yaml names it too."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 4, 15))
    error_message = "A CIDR block of /24 or larger, such as 10.40.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones of the private subnets, three or so."
  type        = list(string)
  default     = ["us-east-1a", "us-east-1b", "us-east-1c"]

  validation {
    condition     = length(var.zones) >= 2 && length(var.zones) <= 4
    error_message = "Two to four zones: EKS and RDS need two, the address plan has room for four."
  }
}

variable "nat_per_zone" {
  description = "A NAT gateway a zone instead of one: a lost zone then takes nothing else along, and each costs its hours."
  type        = bool
  default     = false
}

variable "api_access_cidrs" {
  description = "Addresses from which people reach the cluster's API over the internet. Empty: only from within the VPC."
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.api_access_cidrs, "0.0.0.0/0")
    error_message = "Name your own addresses; 0.0.0.0/0 opens the cluster's API to everybody."
  }
}

variable "admin_role_arns" {
  description = "IAM roles whose holders administer the cluster."
  type        = list(string)
  default     = []
}

variable "kubernetes_version" {
  description = "Kubernetes minor version of EKS."
  type        = string
  default     = "1.34"
}

variable "system_nodes" {
  description = "Nodes for Airflow, MLflow and the operators; always on."
  type        = number
  default     = 3
}

variable "system_instance_type" {
  description = "Instance type of the system nodes."
  type        = string
  default     = "m7i.2xlarge"
}

variable "cpu_nodes_max" {
  description = "On-demand CPU nodes at most; none run while nothing asks. Kueue's flavor mmbert-cpu-on-demand is sized for it."
  type        = number
  default     = 8
}

variable "cpu_instance_type" {
  description = "Instance type of the on-demand CPU nodes."
  type        = string
  default     = "m7i.12xlarge"
}

variable "spot_nodes_max" {
  description = "Spot CPU nodes at most; none run while nothing asks. Kueue's flavor mmbert-cpu-spot is sized for it."
  type        = number
  default     = 32
}

variable "spot_instance_types" {
  description = "Instance types of the spot CPU nodes, all of one size; more types are taken back less often."
  type        = list(string)
  default     = ["m7i.12xlarge", "m6i.12xlarge", "m7a.12xlarge", "m6a.12xlarge"]
}

variable "cpu_disk_gib" {
  description = "Root volume of CPU nodes: images and the scratch space of their pods."
  type        = number
  default     = 1000
}

variable "h100_nodes" {
  description = "p5.48xlarge nodes (8 H100 each), as many as are reserved. 0 gives them back. Kueue's flavor mmbert-h100 is sized for 4."
  type        = number
  default     = 0
}

variable "h100_zone" {
  description = "The zone of the H100 nodes: where the reservation is."
  type        = string
  default     = "us-east-1a"
}

variable "h100_capacity" {
  description = "How H100 nodes are had: `block` (capacity block, paid up front), `reservation` (on-demand capacity reservation) or `on-demand`."
  type        = string
  default     = "block"

  validation {
    condition     = contains(["block", "reservation", "on-demand"], var.h100_capacity)
    error_message = "block, reservation or on-demand."
  }
}

variable "h100_reservation_id" {
  description = "Id (cr-...) of the capacity block or reservation; not for on-demand."
  type        = string
  default     = ""

  validation {
    condition     = var.h100_capacity == "on-demand" || var.h100_nodes == 0 || startswith(var.h100_reservation_id, "cr-")
    error_message = "h100_capacity is block or reservation: give the reservation's id, cr-..., or set h100_nodes to 0."
  }
}

variable "database_instance_class" {
  description = "RDS instance class of the PostgreSQL of Airflow and MLflow."
  type        = string
  default     = "db.m7g.large"
}

variable "database_multi_az" {
  description = "A standby of the database in another zone; it doubles its price."
  type        = bool
  default     = true
}

variable "database_backup_days" {
  description = "Days for which the database can be restored to any second."
  type        = number
  default     = 14

  validation {
    condition     = var.database_backup_days >= 1 && var.database_backup_days <= 35
    error_message = "RDS keeps backups for 1 to 35 days."
  }
}

variable "noncurrent_days" {
  description = "Days for which overwritten and deleted objects of the artifacts can be had back."
  type        = number
  default     = 30
}

variable "log_days" {
  description = "Days for which logs are kept: Airflow's, S3's access logs, the cluster's."
  type        = number
  default     = 90
}
